"""The set as a TFDS builder."""
