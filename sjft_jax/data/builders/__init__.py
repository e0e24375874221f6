"""TFDS builders of sets that TFDS does not have."""
