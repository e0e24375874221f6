"""Weighted symmetric Kullback-Leibler divergence of histograms.

The lifted form turns all pairs into two matrix products. With a = w / 2, any
constants m, l per bin, p' = p - m and P' = log(p + e) - l (the same m, l for
both sides cancel in the differences),

  D(p, q) = sum_d a (p - q) (log(p + e) - log(q + e))
          = <a p', P'> + <a q', Q'> - <a p', Q'> - <a P', q'>.

Centring by means m, l makes the four terms small, so that less cancels.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Added inside every logarithm, as in the Caffe release. It is part of the
# method: another value changes the ranking, because histograms have many
# empty bins.
EPSILON = 2.2204e-16

# Partial sums of a pair, several of a processor's vectors; and bins of a block.
_LANES = 32
_WIDTH = 512


def pairwise_jeffreys(target_qd, source_sd, weight_d, epsilon=EPSILON):
  """Weighted symmetric KL divergence of every target and source descriptor.

  A reference, for tests and other programs: no stage calls it. The search has
  `ops.screen` bound all pairs, and computes the few that stay open by
  `jeffreys_pairs`, in float64.

  D[q, s] = 1/2 sum_d w[d] (t[q, d] - x[s, d]) (log(t[q, d] + e) -
  log(x[s, d] + e)), by the lifted form centred at the target's means.

  Args:
    target_qd: histograms, float32 [q, d]; each channel's bins sum to 1.
    source_sd: histograms, float32 [s, d].
    weight_d: weight of each bin's channel, float32 [d].
    epsilon: added inside the logarithms.

  Returns:
    Distances in nats, float32 [q, s]; smaller is nearer.

  Raises:
    ValueError: if the three lengths d differ.

  Source: Ge & Yu, CVPR 2017, eq. 1; e and the factor 1/2 from the release.
  """
  if not target_qd.shape[1] == source_sd.shape[1] == weight_d.shape[0]:
    raise ValueError(
      'One weight and one bin of both sides per dimension: '
      f'{target_qd.shape=}, {source_sd.shape=}, {weight_d.shape=}.'
    )
  half_d = weight_d / 2
  log_qd, log_sd = jnp.log(target_qd + epsilon), jnp.log(source_sd + epsilon)
  centre_d, log_centre_d = target_qd.mean(axis=0), log_qd.mean(axis=0)
  target_qd, source_sd = target_qd - centre_d[None], source_sd - centre_d[None]
  log_qd, log_sd = log_qd - log_centre_d[None], log_sd - log_centre_d[None]
  scaled_qd, scaled_log_qd = half_d[None] * target_qd, half_d[None] * log_qd
  # Full precision: TPUs and GPUs would round the operands by default.
  high = jax.lax.Precision.HIGHEST
  self_q = jnp.einsum('qd,qd->q', scaled_qd, log_qd)
  self_s = jnp.matmul(source_sd * log_sd, half_d, precision=high)
  # Source-major products are the faster ones on CPU.
  cross_sq = jnp.matmul(log_sd, scaled_qd.T, precision=high) + jnp.matmul(
    source_sd, scaled_log_qd.T, precision=high
  )
  return self_q[:, None] + self_s[None, :] - cross_sq.T


def jeffreys_pairs(
  first_bqw,
  first_log_bqw,
  second_sd,
  log_table_n,
  start_d,
  used_r,
  row_n,
  column_n,
  many,
):
  """The divergence of listed pairs of images, in the direct form and float64.

  D[n] = sum_d (c[d] - k[d]) (L_d(c[d]) - L_d(k[d])),

  for the pixel counts c in row row_n[n] of the first and k in row
  used_r[column_n[n]] of the second, and L_d(c) = log_table_n[start_d[d] + c].
  With L_d(c) = w[d] / 2 / N[d] log(c / N[d] + e), N[d] the pixels, it is the
  weighted symmetric KL divergence, and differences of counts are exact. Every
  pair is summed alone and in one order, so that equal histograms have equal
  distances to the last bit, in whatever company they are computed.

  Args:
    first_bqw: `in_blocks` of counts, integers [b, q, w].
    first_log_bqw: `in_blocks` of L of them, float64 [b, q, w].
    second_sd: counts, integers [s, d].
    log_table_n: L of every count of every kind of bin, float64 [any].
    start_d: where in it L_d(0) is, int32 [d].
    used_r: rows of the second that there are pairs of, int32 [r].
    row_n: int32 [n].
    column_n: int32 [n].
    many: pairs that are asked for, the first of the n.

  Returns:
    Distances in nats, float64 [n]; 0 beyond `many`. JAX must be told to
    compute in 64 bits, `jax.enable_x64`.

  Source: as `pairwise_jeffreys`.
  """
  blocks, _, width = first_bqw.shape
  short = max(0, width - second_sd.shape[1])
  second_sd = jnp.pad(second_sd, ((0, 0), (0, short)))
  start_d = jnp.pad(start_d, (0, short))
  last = second_sd.shape[1] - width

  def block(b, distance_n):
    b = jnp.asarray(b, row_n.dtype)
    at = jnp.minimum(b * width, last)
    count_rw = jax.vmap(
      lambda s: jax.lax.dynamic_slice(second_sd, (s, at), (1, width))[0]
    )(used_r)
    place_rw = count_rw.astype(start_d.dtype)
    place_rw += jax.lax.dynamic_slice_in_dim(start_d, at, width)[None]
    log_rw = log_table_n.at[place_rw].get(mode='promise_in_bounds')
    # As `in_blocks` has it: nothing counts twice, nor what fills up.
    bins_w = at + jnp.arange(width, dtype=at.dtype)
    mine_w = (bins_w >= b * width) & (bins_w < last + width - short)
    log_rw = jnp.where(mine_w[None], log_rw, 0)

    def pair(i, distance_n):
      place = b, row_n[i], jnp.zeros_like(b)
      count_w, log_w = (
        jax.lax.dynamic_slice(x_bqw, place, (1, 1, width))[0, 0]
        for x_bqw in (first_bqw, first_log_bqw)
      )
      # Counts stay as small as they came: it is memory that takes the time.
      differ_w = count_w.astype(jnp.int32)
      differ_w -= count_rw[column_n[i]].astype(jnp.int32)
      term_w = differ_w.astype(distance_n.dtype)
      term_w *= log_w - log_rw[column_n[i]]
      # A sum of slices: XLA's CPU backend does not vectorise row sums.
      return distance_n.at[i].add(sum(jnp.split(term_w, width // _LANES)).sum())

    return jax.lax.fori_loop(0, many, pair, distance_n)

  # Blocks outside: so a block of many rows stays in a cache.
  zero_n = jnp.zeros(len(row_n), first_log_bqw.dtype)
  return jax.lax.fori_loop(0, blocks, block, zero_n)


def in_blocks(value_qd):
  """Bins in blocks, as `jeffreys_pairs` takes the first of its two sides.

  Args:
    value_qd: NumPy [q, d].

  Returns:
    [b, q, w], w a multiple of 32. The last block ends with the last bin, and
    holds 0 where it overlaps the one before; fewer bins than w are filled up.
  """
  dims = value_qd.shape[1]
  width = min(_WIDTH, -(-dims // _LANES) * _LANES)
  value_qd = np.pad(value_qd, ((0, 0), (0, max(0, width - dims))))
  blocks = -(-dims // width)
  value_bqw = np.zeros((blocks, len(value_qd), width), value_qd.dtype)
  for b, value_qw in enumerate(value_bqw):
    at = min(b * width, value_qd.shape[1] - width)
    value_qw[:, b * width - at :] = value_qd[:, b * width : at + width]
  return value_bqw
