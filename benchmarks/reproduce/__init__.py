"""The paper's tables, row by row: `python -m benchmarks.reproduce --help`."""
