"""Which samples make up which row of which step: arithmetic, the same on every rank."""
