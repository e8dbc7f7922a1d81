"""Flows of other libraries, alone and with predicted statistics: `python -m benchmarks.retrofit --help`."""
