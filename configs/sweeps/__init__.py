"""Comparisons of arms over seeds, for python -m sjft_jax.sweep."""
