"""Adaptive histograms: bins of equal mass over the target set, then counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_FLOAT = np.finfo(np.float32)

# Of a vector of the processor: channels, or pixels of few channels.
_LANES = 16
# Values compared in one pass over the running counts. Long enough to hide the
# traffic of the counts, short enough to compile in under a second.
_UNROLL = 64


def quantile_edges(
  values_cn: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Inner edges that give bins of equal mass, from values held in memory.

  A reference, for tests, benchmarks and other programs: no stage calls it.
  Describing takes `quantiles.streaming_edges`, which gives the same for values
  that do not fit in memory.

  edge[c, j] = the value of zero-based rank ((j + 1) n) // bins in channel c,
  closed by `close_first_bin`.

  Args:
    values_cn: float32 [c, n]. Infinities are read as the largest finite number
      of their sign and subnormal numbers as 0, as XLA does.
    bins: bins per channel, at least 2.

  Returns:
    Edges float32 [c, bins - 1], ascending; lower and upper bound, float32 [c].

  Raises:
    ValueError: if a value is NaN, or there are no values.
  """
  sorted_cn = np.sort(settle(values_cn), axis=1)
  rank_j = inner_ranks(sorted_cn.shape[1], bins)
  if np.isnan(sorted_cn).any():
    raise ValueError('Edges need numbers: some values are NaN.')
  lower_c, upper_c = sorted_cn[:, 0], sorted_cn[:, -1]
  return close_first_bin(sorted_cn[:, rank_j], lower_c), lower_c, upper_c


def inner_ranks(count: int, bins: int) -> np.ndarray:
  """Zero-based ranks int64 [bins - 1] of the inner edges among count values."""
  if bins < 2 or count < 1:
    raise ValueError(f'Edges need 2 bins and 1 value: {bins=}, {count=}.')
  return np.arange(1, bins, dtype=np.int64) * count // bins


def settle(value: np.ndarray) -> np.ndarray:
  """float32 values with infinities made finite and subnormal numbers 0."""
  value = np.clip(np.asarray(value, np.float32), _FLOAT.min, _FLOAT.max)
  return np.where(np.abs(value) < _FLOAT.tiny, np.float32(0), value)


def close_first_bin(edges_cb: np.ndarray, lower_c: np.ndarray) -> np.ndarray:
  """Folds the bounds' rule into the edges: bin = number of edges <= value.

  The rule: values at or below the lower bound go to the first bin, at or above
  the upper bound to the last, others to the first bin whose upper edge is
  greater. No edge exceeds the upper bound, so counting edges differs from it
  only where an edge equals the lower bound; there the edge moves up to the next
  normal float32 (XLA reads subnormal numbers as 0).

  Args:
    edges_cb: float32 [c, b], ascending, within the bounds.
    lower_c: lower bound, float32 [c].

  Returns:
    Edges float32 [c, b], ascending and above lower_c.
  """
  with np.errstate(over='ignore'):
    above_c = np.nextafter(lower_c, np.float32(np.inf))
  normal_c = np.where(lower_c < 0, np.float32(0), _FLOAT.tiny)
  above_c = np.where(np.abs(above_c) < _FLOAT.tiny, normal_c, above_c)
  return np.maximum(edges_cb, above_c[:, None])


@jax.jit
def histogram(response_nhwc: jax.Array, edges_cb: jax.Array) -> jax.Array:
  """Counts of every image's pixels in the bins of every channel.

  bin(v) = number of edges <= v, so a pixel on an edge belongs to the bin above
  it, and NaN to the first bin. The counts are differences of cumulative counts:
  comparing each pixel with all edges vectorises, where a search for each
  pixel's bin gathers and scatters (on CPU 12 times slower with 32 bins, 6 times
  with 100).

  Args:
    response_nhwc: float32 [n, h, w, c].
    edges_cb: inner edges float32 [c, b - 1], ascending; see `close_first_bin`.

  Returns:
    int32 [n, c, b]; the bins of a channel sum to h w.

  Raises:
    ValueError: if the numbers of channels differ.
  """
  images, height, width, channels = response_nhwc.shape
  if len(edges_cb) != channels:
    raise ValueError(
      f'One row of edges per channel: {response_nhwc.shape=}, '
      f'{edges_cb.shape=}.'
    )
  pixels = height * width
  # Of few channels, several pixels lie side by side in a vector.
  beside = math.gcd(pixels, max(1, _LANES // channels))
  rows = pixels // beside
  value_nrc = response_nhwc.reshape(images, rows, -1)
  edges_bc = jnp.tile(edges_cb.T, (1, beside))

  def at_least(start, length):
    part_nrc = jax.lax.dynamic_slice_in_dim(value_nrc, start, length, axis=1)
    # Unrolled: XLA's CPU backend vectorises a sum of arrays over channels, but
    # not a reduction over pixels.
    return sum(
      (part_nrc[:, i, None, :] >= edges_bc[None]).astype(jnp.int32)
      for i in range(length)
    )

  # At least two blocks: without a loop XLA counts in the order of what follows,
  # on CPU 20 times slower.
  block = min(max(1, rows // 2), _UNROLL)
  first = rows % block or block
  above_nbc = jax.lax.fori_loop(
    0,
    (rows - first) // block,
    lambda i, total: total + at_least(first + i * block, block),
    at_least(0, first),
  )
  above_nbc = above_nbc.reshape(images, -1, beside, channels).sum(axis=2)
  lower_nbc = jnp.pad(
    above_nbc, ((0, 0), (1, 0), (0, 0)), constant_values=pixels
  )
  upper_nbc = jnp.pad(above_nbc, ((0, 0), (0, 1), (0, 0)))
  return (lower_nbc - upper_nbc).swapaxes(1, 2)
