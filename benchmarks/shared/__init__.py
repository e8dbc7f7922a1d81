"""Parts that several benchmarks use: the store of cells, processes, provenance, data and plots."""
