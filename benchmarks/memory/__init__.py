"""What a memory, a flow and both together find, each idea alone: `python -m benchmarks.memory --help`."""
