"""Published ideas that were considered for the library, each with the same flow, features and training."""
