"""Settings of experiments, a file each over default.py."""
