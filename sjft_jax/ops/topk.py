"""The k smallest distances, and merging tables of them."""

import jax
import numpy as np


def smallest(distance_qs, k: int):
  """The k smallest distances of every row; ties to the lower index.

  For tests and other programs, beside `divergence.pairwise_jeffreys`: no stage
  calls it. The search never holds the distances of all pairs; its tables grow
  by `merge`.

  Args:
    distance_qs: distances, float [q, s].
    k: how many, at most s.

  Returns:
    (distance_qk ascending, index_qk int32).

  Raises:
    ValueError: if k is larger than s.
  """
  if k > distance_qs.shape[1]:
    raise ValueError(f'At most {distance_qs.shape[1]} columns, {k=}.')
  # top_k documents the lower index first among equals.
  negated_qk, index_qk = jax.lax.top_k(-distance_qs, k)
  return -negated_qk, index_qk


def merge(distance_qk, index_qk, distance_qm, index_qm, k: int):
  """The k smallest of two tables; ties to the lower index.

  Args:
    distance_qk: distances in any order, NumPy [q, any]; inf marks an empty
      place.
    index_qk: their indices; no two of a row are equal but in empty places.
    distance_qm: further distances, as the first.
    index_qm: their indices.
    k: width of the merged table, at most the two widths together.

  Returns:
    (distance_qk ascending, index_qk).
  """
  distance = np.concatenate([distance_qk, distance_qm], axis=1)
  index = np.concatenate([index_qk, index_qm], axis=1)
  # Several times faster than the sort by both, which few rows need.
  order = np.argsort(distance, axis=1)
  ascending = np.take_along_axis(distance, order[:, : k + 1], axis=1)
  equal = ascending[:, 1:] == ascending[:, :-1]
  tied = (equal & np.isfinite(ascending[:, 1:])).any(axis=1)
  order[tied] = np.lexsort((index[tied], distance[tied]), axis=1)
  order = order[:, :k]
  return (
    np.take_along_axis(distance, order, axis=1),
    np.take_along_axis(index, order, axis=1),
  )
