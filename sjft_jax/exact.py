"""Distances of listed pairs in float64, in the direct form.

A distance is a function of the two images alone: the same bits whatever the
blocks, shards, devices, threads and processes. So shards merge into one table
as if there were one, and equal histograms are equally far from everything.
They are computed on the CPU, which has float64 everywhere, by one program for
all pairs of a search.
"""

import concurrent.futures

import jax
import numpy as np

from sjft_jax import machine
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError
from sjft_jax.ops import divergence

# Source images described at a time, and pairs that one call computes: many of
# both, as each call reads every target's bins.
_ROWS = 2**11
_PAIRS = 2**15
# Targets whose block of bins stays in a core's own cache while the sources go
# by.
_GROUP = 96


class Exact:
  """Targets in float64, to be asked for distances of pairs.

  Args:
    target_qd: pixel counts, int [q, d].
    describer: gives pixels and weights.
  """

  def __init__(self, target_qd, describer):
    table, start_d = log_table(describer)
    smallest = np.min_scalar_type(int(describer.pixels_d.max()))
    count_bqw = divergence.in_blocks(target_qd.astype(smallest))
    start_b1w = divergence.in_blocks(start_d[None])
    mine_b1w = divergence.in_blocks(np.ones((1, len(start_d))))
    # Four times as large as the counts: written where it stays.
    log_bqw = meshes.aligned(count_bqw.shape, np.float64)
    for log_qw, count_qw, start_1w, mine_1w in zip(
      log_bqw, count_bqw, start_b1w, mine_b1w, strict=True
    ):
      # Another mode would buffer.
      np.take(table, count_qw + start_1w, out=log_qw, mode='clip')
      log_qw *= mine_1w
    constants = count_bqw, log_bqw, table, start_d
    self._device = cpu()
    with jax.enable_x64(True):
      self._constants = jax.device_put(constants, self._device)

  def put(self, counts_sd):
    """Counts, int [s, d], on the device that computes, for several calls."""
    return jax.device_put(counts_sd, self._device)

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
    new_n = np.diff(column_n, prepend=-1) > 0
    used_s, column_n = column_n[new_n], np.cumsum(new_n) - 1
    counts_sd = self.put(counts_sd)

    def tile(part):
      first = column_n[part.start]
      row, column = row_n[part], column_n[part] - first
      order = np.argsort(row // _GROUP * _ROWS + column)
      distance_n[part.start + order] = self._pairs(
        counts_sd, used_s[first : first + _ROWS], row[order], column[order]
      )

    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
      list(pool.map(tile, self._tiles(column_n)))
    return distance_n

  def _tiles(self, column_n):
    """Stretches of the pairs, of so many images and so many pairs at most."""
    start = 0
    while start < len(column_n):
      stop = np.searchsorted(column_n, column_n[start] + _ROWS)
      stop = min(int(stop), start + _PAIRS)
      yield slice(start, stop)
      start = stop

  def _pairs(self, counts_sd, used_r, row_n, column_n):
    *targets, table, start_d = self._constants
    lists = (
      np.pad(x, (0, many - len(x))).astype(np.int32)
      for x, many in ((used_r, _ROWS), (row_n, _PAIRS), (column_n, _PAIRS))
    )
    # The setting is the thread's own.
    with jax.enable_x64(True):
      found = _pairs(*targets, counts_sd, table, start_d, *lists, len(row_n))
    return np.asarray(found)[: len(row_n)]


_pairs = jax.jit(divergence.jeffreys_pairs)


def log_table(describer):
  """The logarithm of every count of every kind of bin, as distances take it.

  A count is an integer, so every one there can be is computed once, and carries
  the weight: differences of counts are exact.

  Args:
    describer: gives pixels and weights.

  Returns:
    (float64 [any]; where in it each bin's begin, int32 [d]).
  """
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
  start = np.cumsum([0] + [len(t) for t in tables[:-1]], dtype=np.int32)
  return np.concatenate(tables), start[which_d]


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
