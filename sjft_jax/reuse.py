"""One description of a source for many targets: fine bins that can be merged.

The bins of a target are quantiles of its own pixels, so that each new target
would describe the whole source anew. Here the source is described once with
many fine bins, quantiles of a sample of its own pixels, and kept; the edges of
a new target then move to the nearest fine ones, and its counts are sums of fine
ones: no source image is read again. The price is that move; what it costs in
neighbours, benchmarks.approximations measures.
"""

import dataclasses

import numpy as np

from sjft_jax import describe, streams
from sjft_jax.errors import UserError

# Images whose pixels give the fine bins, spread evenly over the source.
SAMPLE = 2000


def fit_fine(bank, source, *, bins, **run_on) -> describe.Describer:
  """A describer of fine bins of equal mass over a sample of the source.

  Args:
    bank: the filter bank.
    source: the pool.
    bins: fine bins per channel.
    **run_on: mesh, batch and threads of `describe.fit`.
  """
  count = min(SAMPLE, len(source))
  spread = np.linspace(0, len(source) - 1, count).astype(int)
  sample = source.subset(spread)
  # A source may hold files that are no images.
  return describe.fit(bank, sample, bins=bins, partly=True, **run_on)


def snap(describer, fine) -> describe.Describer:
  """A describer whose edges are the fine ones nearest to its own.

  Args:
    describer: fitted to the target.
    fine: describer of the same bank, from `fit_fine`.
  """
  edges_cb = [
    near[_nearest(near, wanted)]
    for near, wanted in zip(fine.edges_cb, describer.edges_cb, strict=True)
  ]
  return dataclasses.replace(describer, edges_cb=np.stack(edges_cb))


def _nearest(sorted_f, value_b):
  """Position of the nearest number, of equally near ones the lower."""
  above_b = np.clip(np.searchsorted(sorted_f, value_b), 1, len(sorted_f) - 1)
  # Differences of large numbers of either sign do not fit in float32.
  below, here, above = (
    x.astype(np.float64)
    for x in (sorted_f[above_b - 1], value_b, sorted_f[above_b])
  )
  return np.where(here - below <= above - here, above_b - 1, above_b)


class Merged(streams.Described):
  """A stream in the bins of a target, from one in fine bins.

  Args:
    fine: stream of the source by a `fit_fine` describer, most likely cached.
    describer: from `snap`.

  Raises:
    UserError: if an edge of the describer is none of the fine ones.
  """

  def __init__(self, fine, describer):
    super().__init__(describer, fine.dataset)
    for near, edges in zip(
      fine.describer.edges_cb, describer.edges_cb, strict=True
    ):
      if not np.isin(edges, near).all():
        raise UserError(
          'The fine bins of search.cache are not those that this search began '
          'with. Restore that cache, or choose another --workdir.'
        )
    self._fine = fine
    self._place_cb = np.stack(
      [
        np.searchsorted(near, edges)
        for near, edges in zip(
          fine.describer.edges_cb, describer.edges_cb, strict=True
        )
      ]
    )

  def places(self, start, stop):
    """The positions of start..stop that the stream has, int64 [n]."""
    return self._fine.places(start, stop)

  def blocks(self, start, stop, rows):
    """Yields `Block`s of positions start..stop, in order."""
    return self._merged(self._fine.blocks(start, stop, rows))

  def again(self, index_n, rows):
    """Yields `Block`s of these positions, ascending, read anew."""
    return self._merged(self._fine.again(index_n, rows))

  def _merged(self, blocks):
    for block in blocks:
      yield dataclasses.replace(block, counts_nd=self._merge(block.counts_nd))

  def _merge(self, counts_nd):
    # Spelt out: -1 has no meaning in a block of no images.
    (n, d), channels = counts_nd.shape, len(self._place_cb)
    # Pixels up to each edge; a pixel on an edge belongs to the bin above.
    below_ncf = np.cumsum(
      counts_nd.reshape(n, channels, d // channels), axis=2, dtype=np.int32
    )
    place_ncb = np.broadcast_to(
      self._place_cb[None], (n, *self._place_cb.shape)
    )
    edge_ncb = np.take_along_axis(below_ncf, place_ncb, axis=2)
    parts_ncb = np.diff(
      np.concatenate([edge_ncb, below_ncf[..., -1:]], axis=2), axis=2, prepend=0
    )
    return parts_ncb.reshape(n, channels * parts_ncb.shape[2])
