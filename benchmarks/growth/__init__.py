"""Time and memory over the size of the input: `python -m benchmarks.growth --help`."""
