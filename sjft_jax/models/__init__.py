"""Linen networks and their weights."""
