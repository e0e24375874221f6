"""Readers of other programs' weight files: arrays by name, no code is run."""
