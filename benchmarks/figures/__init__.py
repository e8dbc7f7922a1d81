"""The paper's qualitative figures from a trained run: `python -m benchmarks.figures --help`."""
