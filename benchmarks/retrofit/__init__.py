"""What flows of other libraries gain by predicted statistics: `python -m benchmarks.retrofit --help`."""
