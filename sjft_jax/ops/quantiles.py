"""Exact quantiles of any number of responses, in bounded memory.

Radix selection: float32 numbers map to 32-bit keys of the same order. A first
pass counts the keys' leading 16 bits, which tells the bucket of every wanted
rank; two further passes count the next 8 bits inside those buckets only. Counts
are integers that add up over blocks, devices and processes in any order.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax.ops import histograms

LEVELS = (16, 8, 8)  # Bits of the key told apart by each pass.
_ZERO = np.uint32(0x8000_0000)  # Key of 0.0 and -0.0; the sign bit.
_TINY = np.uint32(0x0080_0000)  # Bits of the least normal number.
_INFINITY = np.uint32(0x7F80_0000)  # Bits of infinity.
# A slot beyond every table, which times the digits still fits in int32.
_NOWHERE = 2**22


def keys(value: jax.Array) -> jax.Array:
  """32-bit integers in the order of the float32 values.

  Args:
    value: float32. Infinities get the key of the largest finite number of their
      sign; subnormal numbers and -0.0 that of 0.

  Returns:
    uint32 of the same shape. NaN lies beyond the largest or smallest key.
  """
  bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
  magnitude = bits & ~_ZERO
  magnitude = jnp.where(magnitude < _TINY, 0, magnitude)
  magnitude -= magnitude == _INFINITY
  return jnp.where(bits < _ZERO, _ZERO + magnitude, _ZERO - magnitude)


def values(key: np.ndarray) -> np.ndarray:
  """Inverse of `keys`: uint32 keys to float32 values."""
  bits = np.where(key >= _ZERO, key - _ZERO, (_ZERO - key) | _ZERO)
  return bits.view(np.float32)


@functools.partial(jax.jit, static_argnames='slots')
def count_digits(
  response_nhwc: jax.Array,
  valid_n: jax.Array,
  tables: Sequence[jax.Array],
  *,
  slots: int,
) -> jax.Array:
  """Counts the next digit of the keys whose earlier digits are of interest.

  A key starts in the slot of its channel. Each table leads from (slot, digit)
  to a slot of the next level, or to none for keys that no longer matter.

  Args:
    response_nhwc: float32 [n, h, w, c].
    valid_n: bool [n]; the pixels of other images do not count.
    tables: for every level passed, int32 [slots * digits], from `descend`.
    slots: slots of this level; c at the first.

  Returns:
    int32 [slots * digits].
  """
  channels = response_nhwc.shape[-1]
  key_mc = keys(response_nhwc).reshape(-1, channels)
  slot_mc = jnp.broadcast_to(jnp.arange(channels), key_mc.shape)
  shift = 32
  for level, bits in enumerate(LEVELS[: len(tables) + 1]):
    shift -= bits
    digit_mc = (key_mc >> shift) & (2**bits - 1)
    cell_mc = (slot_mc << bits) + digit_mc.astype(jnp.int32)
    if level < len(tables):
      table = tables[level]
      slot_mc = table.at[cell_mc].get(mode='fill', fill_value=_NOWHERE)
  cells = slots << bits
  valid_m = jnp.repeat(valid_n, len(key_mc) // len(valid_n))
  cell_mc = jnp.where(valid_m[:, None], cell_mc, cells)
  counts = jnp.zeros(cells, jnp.int32)
  return counts.at[cell_mc.ravel()].add(1, mode='drop')


def descend(
  counts: np.ndarray, slot_cr: np.ndarray, rank_cr: np.ndarray, digits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Finds the next digit of every wanted rank.

  Args:
    counts: summed counts of `count_digits`, int64 [slots * digits].
    slot_cr: the slot that each rank lies in, int [c, r].
    rank_cr: zero-based rank within the slot, int64 [c, r].
    digits: digits of this level, 2**bits.

  Returns:
    The digits [c, r]; slots and ranks of the next level; the table there.
  """
  below = np.concatenate([[0], np.cumsum(counts)])
  rank_cr = rank_cr + below[slot_cr * digits]
  cell_cr = np.searchsorted(below, rank_cr, side='right') - 1
  table = np.full(len(counts), _NOWHERE, np.int32)
  # Ranks that share a cell share the last one's slot.
  table[cell_cr.ravel()] = np.arange(cell_cr.size)
  return cell_cr % digits, table[cell_cr], rank_cr - below[cell_cr], table


def streaming_edges(
  blocks: Callable[[], Iterable[tuple[list[jax.Array], jax.Array]]],
  bins: int,
  over_processes: Callable = lambda reduce, value: value,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`histograms.quantile_edges` of a stream that is read three times.

  The edges are exactly the order statistics, whatever the blocks. Memory per
  channel: 65,536 or 256 (bins + 1) counts, whichever is more.

  Args:
    blocks: starts the stream anew. It yields the responses of a block of
      images, one float32 array [n, h, w, c] per layer, and valid bool [n].
    bins: bins per channel, at least 2.
    over_processes: function of (np.sum, an array) to the sum over processes,
      where each reads a share of the images.

  Returns:
    Edges float32 [c, bins - 1], lower and upper bound float32 [c], channels of
    all layers in turn.

  Raises:
    ValueError: if a response is NaN, or there are no valid images.
  """
  layers: list[_Layer] = []
  for _ in LEVELS:
    for responses, valid_n in blocks():
      layers = layers or [_Layer(r.shape[-1]) for r in responses]
      for layer, response_nhwc in zip(layers, responses, strict=True):
        layer.count(response_nhwc, valid_n)
    if not layers:
      raise ValueError('Edges need at least one block of responses.')
    for layer in layers:
      layer.descend(bins, over_processes)
  key_cr = np.concatenate([layer.key_cr for layer in layers])
  value_cr = values(key_cr.astype(np.uint32))
  lower_c, upper_c = value_cr[:, 0], value_cr[:, -1]
  edges_cb = histograms.close_first_bin(value_cr[:, 1:-1], lower_c)
  return edges_cb, lower_c, upper_c


class _Layer:
  """Selection in the channels of one layer: least, inner and greatest rank."""

  def __init__(self, channels):
    self.slot_cr = np.arange(channels)[:, None]
    self.tables, self.counts = (), 0

  def count(self, response_nhwc, valid_n):
    counts = count_digits(
      response_nhwc, valid_n, self.tables, slots=self.slot_cr.size
    )
    self.counts = self.counts + np.asarray(counts, np.int64)

  def descend(self, bins, over_processes):
    counts, self.counts = over_processes(np.sum, self.counts), 0
    digits = 2 ** LEVELS[len(self.tables)]
    if not self.tables:
      self._start(counts.reshape(-1, digits), bins)
    digit_cr, self.slot_cr, self.rank_cr, table = descend(
      counts, self.slot_cr, self.rank_cr, digits
    )
    self.key_cr = self.key_cr * digits + digit_cr
    self.tables = *self.tables, jnp.asarray(table)

  def _start(self, counts_cd, bins):
    beyond = int(_ZERO + _INFINITY) >> 16
    if counts_cd[:, beyond:].any() or counts_cd[:, : 2**16 - beyond].any():
      raise ValueError('Edges need numbers: some responses are NaN.')
    count = int(counts_cd[0].sum())
    rank_r = np.r_[0, histograms.inner_ranks(count, bins), count - 1]
    self.rank_cr = np.tile(rank_r, (len(counts_cd), 1))
    self.key_cr = np.zeros(self.rank_cr.shape, np.int64)
