"""How cost grows with each size: `python -m benchmarks.growth --help`."""
