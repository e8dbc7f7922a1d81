"""Ablation of memories and flows, alone and combined: `python -m benchmarks.memory --help`."""
