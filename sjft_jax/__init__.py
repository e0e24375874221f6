"""Selective joint fine-tuning: a small image set borrows from large ones."""

__version__ = '0.1.0'
