"""Measurements on a GPU in one command, `benchmarks/gpu.sh`, see `benchmarks.gpu.__main__`."""
