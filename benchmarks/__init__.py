"""Benchmarks: the paper's tables as data, and the runs that reproduce them. Run them from the repository's root."""
