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

# Added inside every logarithm, as in the Caffe release. It is part of the
# method: another value changes the ranking, because histograms have many
# empty bins.
EPSILON = 2.2204e-16

# Partial sums of a pair, several of a processor's vectors; and how many such
# parts make a block of bins.
_LANES = 32
_PARTS = 16


def pairwise_jeffreys(target_qd, source_sd, weight_d, epsilon=EPSILON):
  """Weighted symmetric KL divergence of every target and source descriptor.

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
  log_qd = jnp.log(target_qd + epsilon)
  centre_d, log_centre_d = target_qd.mean(axis=0), log_qd.mean(axis=0)
  half_d = weight_d / 2
  target_qd = target_qd - centre_d[None]
  log_qd = log_qd - log_centre_d[None]
  return lifted(
    half_d[None] * target_qd,
    half_d[None] * log_qd,
    jnp.einsum('qd,qd->q', half_d[None] * target_qd, log_qd),
    source_sd - centre_d[None],
    jnp.log(source_sd + epsilon) - log_centre_d[None],
    half_d,
  )


def lifted(scaled_qd, scaled_log_qd, self_q, source_sd, log_sd, half_d):
  """Distances from lifted, centred descriptors: two matrix products.

  Args:
    scaled_qd: a p' of the targets, float32 [q, d].
    scaled_log_qd: a P' of the targets, float32 [q, d].
    self_q: <a p', P'> of the targets, float32 [q].
    source_sd: q' of the sources, float32 [s, d].
    log_sd: Q' of the sources, float32 [s, d].
    half_d: a, float32 [d].

  Returns:
    Distances in nats, float32 [q, s].
  """
  # Full precision: TPUs and GPUs would round the operands by default.
  high = jax.lax.Precision.HIGHEST
  self_s = jnp.matmul(source_sd * log_sd, half_d, precision=high)
  # Source-major products are the faster ones on CPU.
  cross_sq = jnp.matmul(log_sd, scaled_qd.T, precision=high) + jnp.matmul(
    source_sd, scaled_log_qd.T, precision=high
  )
  return self_q[:, None] + self_s[None, :] - cross_sq.T


def jeffreys_pairs(
  first_qd, first_log_qd, second_sd, second_log_sd, row_n, column_n, many
):
  """The divergence of listed pairs, in the direct form and in float64.

  D[n] = sum_d (p[d] - q[d]) (a[d] P[d] - a[d] Q[d]), a = w / 2,

  for p, P in row row_n[n] of the first and q, Q in row column_n[n] of the
  second arrays. The factors may be shared otherwise: pixel counts instead of p
  and q, whose differences are exact even in float32, with logarithms divided by
  the number of pixels. Every pair is summed alone and in one order, so that
  equal histograms have equal distances to the last bit, in whatever company
  they are computed.

  Args:
    first_qd: p, float64 [q, d], or counts, float32 [q, d].
    first_log_qd: a P, P = log(p + e), float64 [q, d].
    second_sd: q, [s, d], as the first.
    second_log_sd: a Q, Q = log(q + e), float64 [s, d].
    row_n: int32 [n].
    column_n: int32 [n].
    many: pairs that are asked for, the first of the n.

  Returns:
    Distances in nats, float64 [n]; 0 beyond `many`. JAX must be told to
    compute in 64 bits, `jax.enable_x64`.

  Source: as `pairwise_jeffreys`.
  """
  blocks, parts = _blocks(first_qd.shape[1])
  width = parts * _LANES
  short = ((0, 0), (0, blocks * width - first_qd.shape[1]))
  arrays = [
    jnp.pad(x, short)
    for x in (first_qd, first_log_qd, second_sd, second_log_sd)
  ]

  def block(b, distance_n):
    start = jnp.asarray(b * width, row_n.dtype)

    def pair(i, distance_n):
      place = row_n[i], row_n[i], column_n[i], column_n[i]
      p, log_p, q, log_q = (
        jax.lax.dynamic_slice(x, (at, start), (1, width))[0]
        for x, at in zip(arrays, place, strict=True)
      )
      term = (p - q).astype(distance_n.dtype) * (log_p - log_q)
      # A sum of slices: XLA's CPU backend does not vectorise row sums.
      return distance_n.at[i].add(sum(jnp.split(term, parts)).sum())

    return jax.lax.fori_loop(0, many, pair, distance_n)

  # Blocks outside: of long descriptors, a block of all rows stays in a cache.
  zero_n = jnp.zeros(len(row_n), first_log_qd.dtype)
  return jax.lax.fori_loop(0, blocks, block, zero_n)


def whole_width(dims: int) -> int:
  """The next length at which `jeffreys_pairs` need not fill up its arrays."""
  blocks, parts = _blocks(dims)
  return blocks * parts * _LANES


def _blocks(dims):
  """Blocks of bins, and parts in each of them."""
  blocks = -(-dims // (_LANES * _PARTS))
  return blocks, -(-dims // (_LANES * blocks))
