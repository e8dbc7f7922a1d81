"""The tables of the SANFlow paper, row by row: `python -m benchmarks.reproduce --help`."""
