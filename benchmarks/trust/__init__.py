"""What was counted of the promises that tests keep: `python -m benchmarks.trust --help`."""
