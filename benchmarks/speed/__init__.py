"""Speed benchmarks, reported as ratios within one run: `python -m benchmarks.speed --help`."""
