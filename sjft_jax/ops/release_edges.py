"""The Caffe release's edges, instead of true quantiles: two passes of a stream.

The first pass finds the bounds of every channel, the second counts 2,000
uniform cells between them; the edges follow from the cells.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax.ops import histograms

CELLS = 2000  # Source: the authors' Caffe release.
PASSES = 2


def streaming_edges(
  blocks: Callable[[], Iterable[tuple[list[jax.Array], jax.Array]]],
  bins: int,
  over_processes: Callable = lambda reduce, value: value,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The release's edges of a stream that is read twice.

  A cell holds the values that are at least lower + j (upper - lower) / 2000,
  in exact arithmetic, and less than the next such value; the last holds the
  upper bound, too. Infinities and subnormal numbers are read as
  `histograms.settle` has them.

  Args:
    blocks: starts the stream anew. It yields the responses of a block of
      images, one float32 array [n, h, w, c] per map, and valid bool [n].
    bins: bins per channel, at least 2.
    over_processes: function of (np.sum or np.max, an array) to the reduction
      over processes, where each reads a share of the images.

  Returns:
    Edges float32 [c, bins - 1], lower and upper bound float32 [c], channels of
    all maps in turn.

  Raises:
    ValueError: if a response is NaN, or there are no valid images.

  Source: the authors' Caffe release of Ge & Yu, CVPR 2017.
  """
  extremes = None
  for maps, valid_n in blocks():
    found = np.concatenate([_extremes(r, valid_n) for r in maps], axis=1)
    extremes = found if extremes is None else np.maximum(extremes, found)
  if extremes is None:
    raise ValueError('Edges need at least one block of responses.')
  extremes = over_processes(np.max, extremes)
  if np.isnan(extremes).any():
    raise ValueError('Edges need numbers: some responses are NaN.')
  if (extremes == -np.inf).all():
    raise ValueError('Edges need at least one valid image.')
  upper_c, lower_c = histograms.settle(extremes * np.float32([[1], [-1]]))
  border_ch = _borders(lower_c, upper_c)
  counts_ch = 0
  for maps, valid_n in blocks():
    first = np.cumsum([0] + [r.shape[-1] for r in maps])
    parts = [
      _count_cells(r, valid_n, border_ch[start : start + r.shape[-1]])
      for r, start in zip(maps, first, strict=False)
    ]
    counts_ch = counts_ch + np.concatenate(parts).astype(np.int64)
  counts_ch = over_processes(np.sum, counts_ch)
  # Maps of different sizes have different counts.
  edges_cb = np.concatenate(
    [
      from_histogram(
        counts_ch[i : i + 1],
        lower_c[i : i + 1],
        upper_c[i : i + 1],
        int(counts_ch[i].sum()),
        bins,
      )
      for i in range(len(counts_ch))
    ]
  )
  return edges_cb, lower_c, upper_c


def _borders(lower_c, upper_c):
  """The least float32 of every cell but the first, [c, CELLS - 1]."""
  lower_c, upper_c = lower_c.astype(np.float64), upper_c.astype(np.float64)
  share = np.arange(1, CELLS) / CELLS
  exact_ch = lower_c[:, None] * (1 - share) + upper_c[:, None] * share
  border_ch = exact_ch.astype(np.float32)
  above_ch = np.nextafter(border_ch, np.float32(np.inf))
  return np.where(border_ch < exact_ch, above_ch, border_ch)


@jax.jit
def _extremes(response_nhwc, valid_n):
  """Greatest and negated least value of every channel, float32 [2, c]."""
  both = jnp.stack([response_nhwc, -response_nhwc])
  valid = valid_n[None, :, None, None, None]
  return jnp.where(valid, both, -jnp.inf).max(axis=(1, 2, 3))


@jax.jit
def _count_cells(response_nhwc, valid_n, border_ch):
  """Counts of the valid images' pixels in every cell, int32 [c, CELLS]."""
  channels = response_nhwc.shape[-1]
  value_cm = jnp.moveaxis(response_nhwc, -1, 0).reshape(channels, -1)
  cell_cm = jax.vmap(
    lambda border_h, value_m: jnp.searchsorted(
      border_h, value_m, side='right', method='scan_unrolled'
    )
  )(border_ch, value_cm)
  valid_m = jnp.repeat(valid_n, value_cm.shape[1] // len(valid_n))
  cell_cm = jnp.where(valid_m[None], cell_cm, CELLS)
  counts_ch = jnp.zeros((channels, CELLS), jnp.int32)
  return counts_ch.at[jnp.arange(channels)[:, None], cell_cm].add(
    1, mode='drop'
  )


def from_histogram(
  histogram_ch: np.ndarray,
  lower_c: np.ndarray,
  upper_c: np.ndarray,
  count: int,
  bins: int,
) -> np.ndarray:
  """The Caffe release's edges, from a fine uniform histogram.

  Scans the fine cells from the lower bound up and adds up their mass p, as a
  share of count + 1. Where k = floor(bins p) >= 1, the stretch scanned since
  the last such place becomes k bins of equal width and p starts again at 0,
  what exceeded k / bins being dropped. The bins left over share the rest, up to
  the upper bound, evenly. Integers throughout, so no mass is lost to rounding.

  Args:
    histogram_ch: counts int64 [c, cells] of uniform cells on [lower, upper];
      the release has 2,000.
    lower_c: least value, float32 [c].
    upper_c: greatest value, float32 [c].
    count: values per channel.
    bins: bins per channel, at least 2.

  Returns:
    Edges float32 [c, bins - 1], closed by `histograms.close_first_bin`.

  Source: the authors' Caffe release of Ge & Yu, CVPR 2017.
  """
  edges_cb = np.stack(
    [
      _release_positions(cumulative_h, count, bins)
      for cumulative_h in np.cumsum(histogram_ch, axis=1, dtype=np.int64)
    ]
  )
  lower_c, upper_c = (
    np.asarray(bound, np.float32) for bound in (lower_c, upper_c)
  )
  width_c = upper_c.astype(np.float64) - lower_c
  edges_cb = lower_c[:, None] + width_c[:, None] * edges_cb
  return histograms.close_first_bin(
    histograms.settle(edges_cb), histograms.settle(lower_c)
  )


def _release_positions(cumulative_h, count, bins):
  """Edges of one channel as fractions of its range, float64 [bins - 1]."""
  cells = len(cumulative_h)
  edges, start, base = [], 0, 0
  # The mass that makes one bin: the least p with floor(bins p) >= 1.
  least = -(-(count + 1) // bins)
  while (cell := np.searchsorted(cumulative_h, base + least)) < cells:
    parts = bins * int(cumulative_h[cell] - base) // (count + 1)
    edges.extend(np.linspace(start, cell + 1, parts + 1)[1:])
    start, base = cell + 1, cumulative_h[cell]
  edges.extend(np.linspace(start, cells, bins - len(edges) + 1)[1:-1])
  return np.array(edges) / cells
