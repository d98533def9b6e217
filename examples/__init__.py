"""Examples that run as they are: python -m examples.sparse_labels."""
