"""What several rooms use: the record of a run, the store of its cells, the processes that make them, the data."""
