"""The qualitative figures of the paper for a trained run: `python -m benchmarks.figures --help`."""
