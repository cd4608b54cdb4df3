"""The rows of a plan, read ahead by worker processes."""
