"""Distances of listed pairs in float64, in the direct form.

A distance is a function of the two images alone: the same bits whatever the
blocks, shards, devices, threads and processes. So shards merge into one table
as if there were one, and equal histograms are equally far from everything.
"""

import concurrent.futures
import os

import numpy as np

from sjft_jax.ops import divergence

# Numbers in one array of work: four arrays stay in a core's cache.
_CACHED = 2**14


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
    self._target_qd, self._log_target_qd = self._describe(target_qd)

  def _describe(self, counts_nd):
    """Counts, float32, and weighted log(p + e), float64 [n, d] each."""
    place_nd = counts_nd + self._start_d[None]
    log_nd = np.take(self._log_table, place_nd, mode='clip')
    return counts_nd.astype(np.float32), log_nd

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
    if not len(row_n):
      return distance_n
    many = max(8, 2**19 // counts_sd.shape[1])
    stop = column_n[-1] + 1
    starts = np.arange(column_n[0], stop, many)
    cuts = np.searchsorted(column_n, np.append(starts, stop))

    def tile(i):
      part = slice(cuts[i], cuts[i + 1])
      if part.start == part.stop:
        return
      used_t, column = np.unique(column_n[part], return_inverse=True)
      distance_n[part] = self._pairs(
        *self._describe(counts_sd[used_t]), column, row_n[part]
      )

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      # NumPy lets go of the interpreter while it works on an array.
      list(pool.map(tile, range(len(starts))))
    return distance_n

  def _pairs(self, source_td, log_source_td, column_n, row_n):
    distance_n = np.empty(len(row_n))
    dims = source_td.shape[1]
    many = max(1, _CACHED // dims)
    first_nd, second_nd = np.empty((2, many, dims), np.float32)
    log_first_nd, log_second_nd = np.empty((2, many, dims))
    for start, stop in _batches(column_n, many):
      n = stop - start
      row, column = row_n[start:stop], column_n[start:stop]
      work = first_nd[:n], log_first_nd[:n]
      # Clipping spares a copy that checks would need.
      if n == 1:  # Long descriptors cost too much to copy.
        one = slice(row[0], row[0] + 1)
        firsts = self._target_qd[one], self._log_target_qd[one]
      else:
        firsts = work
        np.take(self._target_qd, row, 0, firsts[0], 'clip')
        np.take(self._log_target_qd, row, 0, firsts[1], 'clip')
      if column[0] == column[-1]:
        one = slice(column[0], column[0] + 1)
        seconds = source_td[one], log_source_td[one]
      else:
        seconds = second_nd[:n], log_second_nd[:n]
        np.take(source_td, column, 0, seconds[0], 'clip')
        np.take(log_source_td, column, 0, seconds[1], 'clip')
      distance_n[start:stop] = divergence.jeffreys_pairs(
        *firsts, *seconds, work=work
      )
    return distance_n


def _batches(column_n, many):
  """Yields (start, stop), at most `many` apart; equal columns together.

  Where columns repeat, a batch is of one column, whose descriptor need not be
  copied for every pair.
  """
  starts = np.flatnonzero(np.diff(column_n, prepend=-1))
  if len(column_n) < 4 * len(starts):
    starts = np.zeros(1, int)
  for start, stop in zip(starts, [*starts[1:], len(column_n)], strict=True):
    for first in range(start, stop, many):
      yield first, min(first + many, stop)
