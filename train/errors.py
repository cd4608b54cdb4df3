"""Faults that a command tells in one line. Imports nothing: commands must start fast."""


class CheckpointError(RuntimeError):
    """Saving or loading failed on at least one rank; raised on all of them, with every rank's reason."""
