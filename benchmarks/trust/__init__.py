"""Figures that tests record while they check the library's promises: `python -m benchmarks.trust --help`."""
