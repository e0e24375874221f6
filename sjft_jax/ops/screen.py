"""Bounds below and above the divergences of a block, at the cost of a product.

With a = w / 2, any constants m, l, s > 0 per bin, and

  u = sqrt(a) s (p - m),    v = sqrt(a) / s (log(p + e) - l),

the divergence of target t and source x is <u_t - u_x, v_t - v_x>, that is

  D = <u_t, v_t> + <u_x, v_x> - <u_t, v_x> - <v_t, u_x>.

The last two are matrix products over all bins. With orthonormal columns W they
are <W'u_t, W'v_x> + <u_t - WW'u_t, v_x - WW'v_x>, and likewise: the first terms
are short products, the second ones no more than the product of two norms, by
Cauchy and Schwarz, which each image has to compute but once. The neighbours
differ little from their target, and where few directions hold most of what
distinguishes images, the bounds are tight enough to leave few pairs open.
"""

import dataclasses

import jax
import jax.numpy as jnp

# Cells in which upper bounds are counted; the last holds all beyond.
CELLS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
  """The targets' side of the bounds, made ready by `sjft_jax.screen`.

  Bins come in g groups of d, so that sums are short and round little. The
  products take operands of the type of `left`; all else is float32.

  share_gd, centre_gd, log_centre_gd: what turns counts into p - m and
    log(p + e) - l; the share of one pixel, m and l.
  scale_gd, log_scale_gd: sqrt(a) s and sqrt(a) / s.
  left_gnd, right_gnd: what v and u are multiplied by: u_t and v_t of the n = q
    targets, or twice the n = r columns of W.
  short_qr, log_short_qr: W'u_t and W'v_t, or None without W.
  rest_q, log_rest_q: |u_t - WW'u_t| and |v_t - WW'v_t|; 0 without W.
  norm_rate_q, log_rate_q: error of the products per |u_x| and per |v_x|.
  self_rates: error of <u_x, v_x> per |u_x| |v_x|, |u_x| and |v_x|, [3].
  rest_rate: error of |u_x - WW'u_x|^2 per |u_x|^2, and of v_x likewise, scalar.
  """

  share_gd: jax.Array
  centre_gd: jax.Array
  log_centre_gd: jax.Array
  scale_gd: jax.Array
  log_scale_gd: jax.Array
  left_gnd: jax.Array
  right_gnd: jax.Array
  short_qr: jax.Array | None
  log_short_qr: jax.Array | None
  rest_q: jax.Array
  log_rest_q: jax.Array
  norm_rate_q: jax.Array
  log_rate_q: jax.Array
  self_rates: jax.Array
  rest_rate: jax.Array


def lifted(counts_sd, operands, group, epsilon):
  """u and v of one group of bins, float32 [s, d] each.

  Args:
    counts_sd: pixel counts, unsigned integers [s, d] of the whole descriptor.
    operands: `Operands`.
    group: number of the group, int scalar.
    epsilon: e.
  """
  width = operands.share_gd.shape[1]
  share_d, centre_d, log_centre_d, scale_d, log_scale_d = (
    value_gd[group]
    for value_gd in (
      operands.share_gd,
      operands.centre_gd,
      operands.log_centre_gd,
      operands.scale_gd,
      operands.log_scale_gd,
    )
  )
  part_sd = jax.lax.dynamic_slice_in_dim(
    counts_sd, group * width, width, axis=1
  )
  # A product is rounded once at most, on every device; a division need not be,
  # and XLA may make it a product.
  fraction_sd = part_sd.astype(jnp.float32) * share_d[None]
  log_sd = jnp.log(fraction_sd + epsilon) - log_centre_d[None]
  return (
    (fraction_sd - centre_d[None]) * scale_d[None],
    log_sd * log_scale_d[None],
  )


def bounds(counts_sd, operands, epsilon):
  """Bounds on D - <u_t, v_t>, for every source row and target.

  Args:
    counts_sd: pixel counts, unsigned integers [s, g d].
    operands: `Operands` of q targets.
    epsilon: e.

  Returns:
    (lower_sq, upper_sq, norm_s, log_norm_s): bounds in nats, but for errors
    that are the same for all rows, which the caller adds; |u_x| and |v_x|.
    All float32.
  """
  groups, many, _ = operands.left_gnd.shape
  rows = len(counts_sd)
  short = operands.short_qr is not None

  def add(sums, group):
    cross, self_s, norm_s, log_norm_s = sums
    u_sd, v_sd = lifted(counts_sd, operands, group, epsilon)
    products = (
      _times(v_sd, operands.left_gnd[group]),
      _times(u_sd, operands.right_gnd[group]),
    )
    if not short:
      products = (products[0] + products[1],)
    return (
      tuple(c + p for c, p in zip(cross, products, strict=True)),
      self_s + _row_sum(u_sd * v_sd),
      norm_s + _row_sum(u_sd * u_sd),
      log_norm_s + _row_sum(v_sd * v_sd),
    ), None

  zero_s = jnp.zeros(rows, jnp.float32)
  zero_sn = jnp.zeros((rows, many), jnp.float32)
  start = ((zero_sn,) * (2 if short else 1), zero_s, zero_s, zero_s)
  if groups == 1:
    sums, _ = add(start, 0)
  else:
    sums, _ = jax.lax.scan(add, start, jnp.arange(groups))
  cross, self_s, square_s, log_square_s = sums
  norm_s, log_norm_s = jnp.sqrt(square_s), jnp.sqrt(log_square_s)
  if short:
    log_part_sr, part_sr = cross
    cross_sq = _times(log_part_sr, operands.short_qr) + _times(
      part_sr, operands.log_short_qr
    )
    rest_s = _rest(square_s, part_sr, operands.rest_rate)
    log_rest_s = _rest(log_square_s, log_part_sr, operands.rest_rate)
  else:
    (cross_sq,) = cross
    rest_s = log_rest_s = zero_s
  rates = operands.self_rates
  self_error_s = (
    norm_s * log_norm_s * rates[0] + norm_s * rates[1] + log_norm_s * rates[2]
  )
  width_sq = (
    self_error_s[:, None]
    + norm_s[:, None] * operands.norm_rate_q[None]
    + log_norm_s[:, None] * operands.log_rate_q[None]
    + rest_s[:, None] * operands.log_rest_q[None]
    + log_rest_s[:, None] * operands.rest_q[None]
  )
  middle_sq = self_s[:, None] - cross_sq
  return middle_sq - width_sq, middle_sq + width_sq, norm_s, log_norm_s


def candidates(counts_sd, operands, limit_q, self_q, cells_q, epsilon):
  """The pairs that the bounds leave open, and where their upper bounds lie.

  Args:
    counts_sd: as in `bounds`.
    operands: as in `bounds`.
    limit_q: largest lower bound that stays open, float32 [q].
    self_q: what turns upper bounds into distances, float32 [q].
    cells_q: cells per nat, float32 [q].
    epsilon: e.

  Returns:
    (open_sq bool, lower_sq float32, cell_sq uint8: the cell, out of CELLS, of
    the upper bound, norm_s, log_norm_s).
  """
  lower_sq, upper_sq, *norms = bounds(counts_sd, operands, epsilon)
  cell_sq = (upper_sq + self_q[None]) * cells_q[None]
  cell_sq = jnp.clip(cell_sq, 0, CELLS - 1).astype(jnp.uint8)
  return lower_sq <= limit_q[None], lower_sq, cell_sq, *norms


def _times(value_sd, other_nd):
  """Rows times rows, [s, n] in float32, in the type of the second."""
  return jax.lax.dot_general(
    value_sd.astype(other_nd.dtype),
    other_nd,
    (((1,), (1,)), ((), ())),
    # Accelerators would round float32 operands by default.
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def _row_sum(value_sd):
  # A matrix-vector product: XLA's CPU backend does not vectorise row sums.
  ones_d = jnp.ones(value_sd.shape[1], value_sd.dtype)
  return jnp.matmul(value_sd, ones_d, precision=jax.lax.Precision.HIGHEST)


def _rest(square_s, part_sr, rate):
  """What |x - WW'x| cannot exceed, but for absolute errors of x."""
  rest_s = jnp.maximum(square_s - _row_sum(part_sr * part_sr), 0)
  return jnp.sqrt(rest_s + square_s * rate)
