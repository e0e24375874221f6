"""Distances of listed pairs in float64, in the direct form.

A distance is a function of the two images alone: the same bits whatever the
blocks, shards, devices, threads and processes. So shards merge into one table
as if there were one, and equal histograms are equally far from everything.
They are computed on the CPU, which has float64 everywhere, by one program for
all pairs of a search.
"""

import concurrent.futures
import os

import jax
import numpy as np

from sjft_jax.errors import UserError
from sjft_jax.ops import divergence

# Bins of the source images that are held as float64 at a time.
_TILE = 2**21
# Pairs that one call computes: many, as each reads every target's bins.
_PAIRS = 2**14


class Exact:
  """Targets in float64, to be asked for distances of pairs.

  Args:
    target_qd: pixel counts, int [q, d].
    describer: gives pixels and weights.
  """

  def __init__(self, target_qd, describer):
    # A count is an integer, so every logarithm there can be is computed once,
    # and carries the weight: differences of counts are exact.
    kinds, which_d = np.unique(
      np.stack([describer.pixels_d, describer.weight_d]),
      axis=1,
      return_inverse=True,
    )
    tables = [
      np.log(np.arange(pixels + 1) / pixels + divergence.EPSILON)
      * (weight / 2 / pixels)
      for pixels, weight in kinds.T
    ]
    start = np.cumsum([0] + [len(t) for t in tables[:-1]])
    self._log_table = np.concatenate(tables)
    self._start_d = start[which_d]
    self._rows = max(8, _TILE // target_qd.shape[1])
    self._device = cpu()
    with jax.enable_x64(True):
      self._targets = jax.device_put(
        self._describe(target_qd, len(target_qd)), self._device
      )

  def _describe(self, counts_nd, rows):
    """Counts, float32, and weighted log(p + e), float64, filled up by zeros."""
    place_nd = counts_nd + self._start_d[None]
    log_nd = np.take(self._log_table, place_nd, mode='clip')
    short = (
      (0, rows - len(counts_nd)),
      (0, divergence.whole_width(counts_nd.shape[1]) - counts_nd.shape[1]),
    )
    return np.pad(counts_nd.astype(np.float32), short), np.pad(log_nd, short)

  def __call__(self, counts_sd, column_n, row_n):
    """Distances of n pairs of a source and a target image.

    Args:
      counts_sd: pixel counts of source images, int [s, d].
      column_n: which of them, int [n], ascending.
      row_n: which target, int [n].

    Returns:
      Nats, float64 [n].
    """
    distance_n = np.empty(len(row_n))
    used_s, column_n = np.unique(column_n, return_inverse=True)
    starts = np.arange(0, len(used_s), self._rows)
    cuts = np.searchsorted(column_n, np.append(starts, len(used_s)))

    def tile(i):
      start = starts[i]
      counts_td = counts_sd[used_s[start : start + self._rows]]
      described = self._describe(counts_td, self._rows)
      # The setting is the thread's own.
      with jax.enable_x64(True):
        sources = jax.device_put(described, self._device)
        for first in range(cuts[i], cuts[i + 1], _PAIRS):
          part = slice(first, min(first + _PAIRS, cuts[i + 1]))
          distance_n[part] = self._pairs(
            sources, row_n[part], column_n[part] - start
          )

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(tile, range(len(starts))))
    return distance_n

  def _pairs(self, sources, row_n, column_n):
    short = 0, _PAIRS - len(row_n)
    row_m, column_m = (
      np.pad(x.astype(np.int32), short) for x in (row_n, column_n)
    )
    found = _pairs(*self._targets, *sources, row_m, column_m, len(row_n))
    return np.asarray(found)[: len(row_n)]


_pairs = jax.jit(divergence.jeffreys_pairs)


def cpu():
  """This process's first CPU device, whatever else it computes on.

  Raises:
    UserError: if JAX was told to have none.
  """
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    raise UserError(
      'The search needs the CPU as a device of JAX, too, for float64: add it '
      f'to JAX_PLATFORMS, as in JAX_PLATFORMS=tpu,cpu ({error}).'
    ) from error
