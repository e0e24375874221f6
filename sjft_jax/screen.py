"""The targets' side of the screen, with a proven bound on its rounding.

Notation as in `ops.screen`: u and v of the targets are computed in float64;
|x| is the Euclidean norm. A sum of n rounded products <x, y> is off by at most
g |x| |y|, g = n h / (1 - n h), in any order of summation, where h is the unit
roundoff. Source: N. Higham, Accuracy and Stability of Numerical Algorithms,
chapter 3.

The proof is in docs/bounds.md: P1 to P5 and L1 to L20 in the comments here are
its premises and lines.
"""

import concurrent.futures
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sjft_jax import machine
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError
from sjft_jax.ops import divergence, screen

# Unit roundoffs: half the distance from 1 to the next number.
ROUNDING = 2.0**-24
OPERANDS = {'float32': (jnp.float32, 0.0), 'bfloat16': (jnp.bfloat16, 2.0**-8)}
# Covers products of errors, and the rounding of the bounds themselves: L17.
SLACK = 1.05
# Factors within a term: of one held operand, 1 + 2**-8 (L9, L13); of two, and a
# rounded sum (L12, L14); what is small beside 1 in L15 and L18.
_HELD, _HELD_TWICE, _INNER = 1.01, 1.02, 1.05
# How far W may be from orthonormal, and its sums may round: P5.
_MOST_OFF, _MOST_ROUNDED = 0.05, 0.01
# Bins per group: short sums round less, long ones run faster. Sums over many
# targets are costlier to interrupt than those over few directions.
_GROUP = {True: 512, False: 2304}
# Axis of the devices that the targets are split over.
_TARGETS = 'target'
# Targets that the directions are taken from: their Gram matrix is inverted.
_FITTED = 1024
# Numbers of the targets that are lifted at a time, in every thread.
_LIFTED = 2**20
# Products long enough to compare, and rows of the largest: 512 MB of operands
# and 256 MB of float32 as result.
_PRODUCT_SECONDS = 5e-3
_PRODUCT_ROWS = 2**13


class Screen:
  """Targets made ready on the devices, to be asked which pairs stay open.

  Args:
    target_qd: pixel counts of the targets, int [q, d].
    describer: gives fractions, logarithms, weights and their error.
    mesh: its devices share the work.
    target_parts: devices that the targets are split over, where they do not
      fit into one; the others split the source rows of a block. Every part
      lifts the rows anew.
    rank: directions of the short products; 0 for products over all bins, None
      for 256 directions where they hold enough and save enough, else 0. With
      bfloat16 they do not: its rounding loosens their bounds most, and XLA's
      CPU backend is slow at bfloat16 products in a loop.
    operands: 'float32' or 'bfloat16', or 'auto' for the faster.

  Raises:
    UserError: if the devices cannot be divided so, or so many directions round
      more than the bounds allow for.
  """

  def __init__(
    self,
    target_qd,
    describer,
    mesh,
    *,
    target_parts=1,
    rank=None,
    operands='auto',
  ):
    if operands == 'auto':
      operands = faster_operands()
    self.operands = operands
    self._type, self._step = OPERANDS[operands]
    self._mesh = grid(mesh, target_parts)
    self._targets = len(target_qd)
    lifted = _Lifted(target_qd, describer)
    half_d = describer.weight_d / 2
    # Relative error of p (L1): a pixel's share is rounded, and its multiple.
    share_d = _single(1 / describer.pixels_d)
    off = np.abs(share_d * describer.pixels_d - 1).max()
    self._fraction = f = float(off) * (1 + ROUNDING) + ROUNDING
    # Absolute errors of one u (L2) and of one v (L4) of a source image.
    self._error = f * _norm(lifted.scale_d * lifted.centre_d)
    self._log_error = describer.log_error() * _norm(lifted.log_scale_d)
    self.rank, w_dr = self._directions(lifted, rank)
    groups = -(-len(half_d) // _GROUP[bool(self.rank)])
    self.width = -(-len(half_d) // groups) * groups

    def grouped(value):
      value = np.asarray(value, np.float32)
      short = [(0, 0)] * (value.ndim - 1) + [(0, self.width - len(half_d))]
      value = np.pad(value, short)
      value = value.reshape(*value.shape[:-1], groups, -1)
      return np.moveaxis(value, -2, 0)

    # Roundings of a sum over all bins, and 4 to spare (L5).
    g = _gamma(self.width // groups + groups + 4)
    if self.rank:
      sides = self._short(lifted, w_dr, g)
      left_gnd = right_gnd = grouped(w_dr.T).astype(self._type)
    else:
      shape = groups, self._targets, self.width // groups
      left_gnd, right_gnd = (np.zeros(shape, self._type) for _ in range(2))
      sides = self._whole(lifted, left_gnd, right_gnd, g)
    self.self_q = sides.pop('self_q')
    fixed_q = sides.pop('fixed_q')
    # What no norm of a source image bounds (L8), and <u_t, v_t> in float32
    # (L20).
    fixed_q = fixed_q + self._error * self._log_error
    self.fixed_q = SLACK * (fixed_q + 4 * ROUNDING * np.abs(self.self_q))
    # f + 7 h would do (L7, L10).
    self_rates = [g + 14 * ROUNDING + 2 * f, self._log_error, self._error]
    self._self_rates = SLACK * np.array(self_rates)
    self._norm_rate_q = sides['norm_rate_q']
    self._log_rate_q = sides['log_rate_q']
    self._rest_rate = sides['rest_rate']
    self._rests_q = sides['rest_q'], sides['log_rest_q']
    constants = screen.Operands(
      share_gd=grouped(share_d),
      centre_gd=grouped(lifted.centre_d),
      log_centre_gd=grouped(lifted.log_centre_d),
      scale_gd=grouped(lifted.scale_d),
      log_scale_gd=grouped(lifted.log_scale_d),
      left_gnd=left_gnd,
      right_gnd=right_gnd,
      self_rates=self._self_rates,
      **sides,
    )
    specs = _specs(bool(self.rank))
    self._constants = jax.tree.map(self._place, constants, specs)
    self.dims = len(half_d)
    self.count_type = (
      np.uint16 if describer.pixels_d.max() < 2**16 else np.int32
    )

  def _place(self, value, spec):
    """A constant on the devices; targets are filled up to equal parts."""
    if value.dtype != self._type:
      value = np.asarray(value, np.float32)
    if _TARGETS in spec:
      value = self._filled(value, spec.index(_TARGETS))
    return jax.device_put(value, NamedSharding(self._mesh, spec))

  def _filled(self, value, axis=0):
    short = -self._targets % self._mesh.shape[_TARGETS]
    if not short:
      return value
    return np.pad(value, [(0, short * (i == axis)) for i in range(value.ndim)])

  def _directions(self, lifted, rank):
    """The number of directions, and W float64 [d, r] as the devices hold it."""
    targets, dims = self._targets, len(lifted.centre_d)
    wanted = 256 if rank is None else rank
    if rank is None and self.operands == 'bfloat16':
      return 0, None
    saves = wanted * (1 / dims + 1 / targets) < 0.7
    if wanted == 0 or (rank is None and not saves):
      return 0, None
    some = np.linspace(0, targets - 1, min(targets, _FITTED)).astype(int)
    both = lifted(some)
    z_nd = np.concatenate([x / (_norm(x) or 1) for x in both])
    w_dr = _leading(z_nd.astype(np.float32), min(wanted, dims))
    w_dr = w_dr.astype(self._type).astype(np.float64)
    if rank is None:
      left = [_rows(x - (x @ w_dr) @ w_dr.T) for x in both]
      whole = [_rows(x) for x in both]
      # What the directions miss must be small beside what there is.
      if (left[0] * left[1]).mean() > 0.05 * (whole[0] * whole[1]).mean():
        return 0, None
    return w_dr.shape[1], w_dr

  def _typed(self, value):
    """As the devices hold it: (value, norms of its rows, of its error)."""
    typed = value.astype(self._type)
    held = typed.astype(np.float64)
    return typed, _rows(held), _rows(held - value)

  def _whole(self, lifted, left_gnd, right_gnd, g):
    """Targets' operands, which it fills in, and error rates of the products."""
    h, f, w = ROUNDING, self._fraction, self._step
    # 5 h or f + 4 h would do beside w and g (L9, L10).
    rate = 6 * h + 2 * f + _HELD * (w + g)
    width = left_gnd.shape[2]

    def sides(rows, u_nd, v_nd):
      norms = []
      for value, operand_gnd in ((u_nd, left_gnd), (v_nd, right_gnd)):
        typed, norm_n, off_n = self._typed(value)
        for group, into_nd in enumerate(operand_gnd):
          part = typed[:, group * width : (group + 1) * width]
          into_nd[rows, : part.shape[1]] = part
        norms += norm_n, off_n
      u_n, off_u_n, v_n, off_v_n = norms
      zero_n = np.zeros(len(u_n))
      return dict(
        self_q=np.einsum('qd,qd->q', u_nd, v_nd),
        rest_q=zero_n,
        log_rest_q=zero_n,
        log_rate_q=SLACK * (off_u_n + rate * u_n),
        norm_rate_q=SLACK * (off_v_n + rate * v_n),
        fixed_q=_INNER * (u_n * self._log_error + v_n * self._error),  # L18
      )

    return lifted.each(sides) | dict(
      short_qr=None, log_short_qr=None, rest_rate=np.zeros(())
    )

  def _short(self, lifted, w_dr, g):
    """Targets in the directions, what is left of them, and error rates."""
    h, f, w = ROUNDING, self._fraction, self._step
    gram_rr = w_dr.T @ w_dr
    off = np.linalg.norm(gram_rr - np.eye(len(gram_rr)), 2)
    stretch, frobenius = np.sqrt(1 + off), _norm(w_dr)
    if off > _MOST_OFF or g * frobenius > _MOST_ROUNDED:
      raise UserError(
        f'The bounds are not proven for {len(gram_rr)} directions in '
        f'{self.operands}, which round too much: choose a smaller search.rank.'
      )
    g_short = _gamma(len(gram_rr) + 4)
    # Of W'v_x, per |v_x|: rounded operands, then a rounded sum (L13).
    part = stretch * (2 * h + 2 * f + _HELD * w) + _HELD * g * frobenius

    def sides(rows, u_nd, v_nd):
      del rows
      found = dict(self_q=np.einsum('qd,qd->q', u_nd, v_nd), fixed_q=0.0)
      for name, rate_name, error, x_nd in (
        ('', 'log_rate_q', self._log_error, u_nd),
        ('log_', 'norm_rate_q', self._error, v_nd),
      ):
        # Least squares, so that what is left is orthogonal to W as it is held.
        z_nr = np.linalg.solve(gram_rr, w_dr.T @ x_nd.T).T
        left_nd = x_nd - z_nr @ w_dr.T
        left_n = _rows(left_nd)
        # float64 leaves this much of it in W's span (L12).
        leak_n = _rows(left_nd @ w_dr)
        z_typed, z_n, off_z_n = self._typed(z_nr)
        found[f'{name}short_qr'] = z_typed
        found[f'{name}rest_q'] = SLACK * left_n
        # L14: 2 h would do (L10).
        found[rate_name] = SLACK * (
          _HELD_TWICE * stretch * (off_z_n + z_n * (w + g_short + 8 * h))
          + z_n * part
          + _HELD_TWICE * leak_n
        )
        # Both parts of the target meet the absolute error (L14, L16, L18).
        found['fixed_q'] = (
          found['fixed_q'] + _INNER * (stretch * z_n + left_n) * error
        )
      return found

    # Of |v_x - WW'v_x|^2 and |u_x - WW'u_x|^2, per |v_x|^2 and |u_x|^2 (L15);
    # g, and 7 h or 2 f + 5 h, would do.
    square = 2 * g + g_short * stretch**2 + _INNER * off * stretch**2
    square += 4 * h + 4 * f + 2 * _INNER * stretch * part
    return lifted.each(sides) | dict(rest_rate=SLACK * square)

  def block(self, counts_nd, rows):
    """Counts of one block on the devices, filled up to `rows` rows.

    A CPU may take a block that needs no filling up as it lies: it must not be
    written to again.

    Args:
      counts_nd: pixel counts, int [n, dims], n at most `rows`.
      rows: of every block, so that one program serves them all.

    Returns:
      `count_type` [rows or a few more, width].
    """
    shape = meshes.round_up(rows, self._mesh), self.width
    if counts_nd.shape != shape or counts_nd.dtype != self.count_type:
      block_sd = np.zeros(shape, self.count_type)
      block_sd[: len(counts_nd), : counts_nd.shape[1]] = counts_nd
      counts_nd = block_sd
    return meshes.shard(counts_nd, self._mesh)

  def candidates(self, block_sd, limit_q, farthest_q):
    """Asks which pairs of a block may be no farther than a limit.

    Args:
      block_sd: from `block`.
      limit_q: nats, float64 [q]; inf leaves all pairs open.
      farthest_q: nats, float64 [q]: upper bounds are counted in cells that
        divide the range from 0 to it.

    Returns:
      (open_sq bool, lower_sq float32, cell_sq uint8, norm_s, log_norm_s) on
      the devices, for `fetch`. Add `floor_q` to lower_sq for a lower bound in
      nats.
    """
    limit_q = _up(limit_q - self.floor_q)
    cells_q = np.float32(self.cells(farthest_q))
    ceiling_q = np.float32(self.self_q + self.fixed_q)
    vectors = map(self._filled, (limit_q, ceiling_q, cells_q))
    program = _over_grid(screen.candidates, self._mesh, bool(self.rank), 3)
    return program(block_sd, self._constants, *vectors)

  def fetch(self, answer, rows):
    """An answer as NumPy, of the first rows and without what fills up."""
    whole = (meshes.fetch(x)[:rows] for x in answer)
    return [x[:, : self._targets] if x.ndim == 2 else x for x in whole]

  def bounds(self, block_sd, rows):
    """Bounds of all distances of a block.

    Args:
      block_sd: from `block`.
      rows: of the block, without what fills it up.

    Returns:
      (lower_sq float32, to which `floor_q` must be added; upper_sq float64,
      nats; norm_s, log_norm_s), NumPy.
    """
    program = _over_grid(screen.bounds, self._mesh, bool(self.rank), 0)
    answer = program(block_sd, self._constants)
    lower_sq, upper_sq, *norms = self.fetch(answer, rows)
    upper_sq = upper_sq + (self.self_q + self.fixed_q)[None]
    return lower_sq, upper_sq, *norms

  def rounding(self, norm_s, log_norm_s):
    """The most by which rounding can move a bound of these rows, nats."""
    if not len(norm_s):
      return 0.0
    norm, log_norm = float(norm_s.max()), float(log_norm_s.max())
    both, single, log_single = self._self_rates
    rest_rate = np.sqrt(self._rest_rate)
    rest_q, log_rest_q = self._rests_q
    return float(
      (
        self.fixed_q
        + norm * self._norm_rate_q
        + log_norm * self._log_rate_q
        # What is outside the directions is known from a difference of squares.
        + rest_rate * norm * log_rest_q
        + rest_rate * log_norm * rest_q
      ).max()
      + norm * log_norm * both
      + norm * single
      + log_norm * log_single
    )

  @property
  def floor_q(self):
    """What turns the devices' lower bounds into nats, float64 [q]."""
    return self.self_q - self.fixed_q

  @staticmethod
  def cells(farthest_q):
    """Cells per nat; the last cell is beyond the farthest."""
    return (screen.CELLS - 1) / np.maximum(farthest_q, 1e-12)


class _Lifted:
  """u and v of the targets in float64, a few targets at a time.

  All at once would take many times the memory of their counts.

  centre_d, log_centre_d, scale_d, log_scale_d: the constants m, l, sqrt(a) s
  and sqrt(a) / s; float32 numbers but the last, so that both sides use the very
  same.
  """

  def __init__(self, target_qd, describer):
    self._target_qd, self._describer = target_qd, describer
    half_d = describer.weight_d / 2
    rows = max(1, _LIFTED // len(half_d))
    self._parts = [
      slice(start, start + rows) for start in range(0, len(target_qd), rows)
    ]
    # Differences from one part's means, which are small, square with little
    # cancellation.
    pivots = [x.mean(axis=0) for x in self._histograms(self._parts[0])]

    def moments(part):
      found = []
      for x_nd, pivot_d in zip(self._histograms(part), pivots, strict=True):
        x_nd -= pivot_d[None]
        found += x_nd.sum(axis=0), np.einsum('nd,nd->d', x_nd, x_nd)
      return found

    sums = [
      sum(x) / len(target_qd) for x in zip(*self._map(moments), strict=True)
    ]
    means, spreads = [], []
    for pivot_d, mean_d, square_d in zip(
      pivots, sums[::2], sums[1::2], strict=True
    ):
      means.append(pivot_d + mean_d)
      spread_d = np.sqrt(np.maximum(square_d - mean_d**2, 0))
      # A bin that never changes among the targets keeps a moderate scale.
      spreads.append(spread_d + 1e-3 * spread_d.mean() + 1e-30)
    self.centre_d, self.log_centre_d = map(_single, means)
    # Equal spread of u and v in every bin makes the directions hold more.
    spread_d, log_spread_d = spreads
    self.scale_d = _single(np.sqrt(half_d * log_spread_d / spread_d))
    self.log_scale_d = half_d / self.scale_d

  def _histograms(self, rows):
    counts_nd = self._target_qd[rows]
    return self._describer.fractions(counts_nd), self._describer.logs(counts_nd)

  def _map(self, function):
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
      return list(pool.map(function, self._parts))

  def __call__(self, rows):
    """(u, v) of some targets, float64 [n, d]."""
    u_nd, v_nd = self._histograms(rows)
    u_nd -= self.centre_d[None]
    u_nd *= self.scale_d[None]
    v_nd -= self.log_centre_d[None]
    v_nd *= self.log_scale_d[None]
    return u_nd, v_nd

  def each(self, function):
    """What function(rows, u, v), a dict of arrays, gives of all targets."""
    parts = self._map(lambda rows: function(rows, *self(rows)))
    return {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }


def grid(mesh, target_parts: int) -> jax.sharding.Mesh:
  """The mesh's devices, by source rows and targets.

  Raises:
    UserError: if there are not so many equal parts of them.
  """
  if target_parts < 1 or mesh.size % target_parts:
    raise UserError(
      'search.target_parts must divide the devices of a process: came '
      f'{target_parts}, and there are {mesh.size}.'
    )
  shape = mesh.size // target_parts, target_parts
  devices = mesh.devices.reshape(shape)
  return jax.sharding.Mesh(devices, (meshes.AXIS, _TARGETS))


def _specs(short):
  """How the constants lie on the grid; `short` as in `ops.screen`."""
  whole, split = PartitionSpec(), PartitionSpec(_TARGETS)
  sides = whole if short else PartitionSpec(None, _TARGETS)
  return screen.Operands(
    share_gd=whole,
    centre_gd=whole,
    log_centre_gd=whole,
    scale_gd=whole,
    log_scale_gd=whole,
    left_gnd=sides,
    right_gnd=sides,
    short_qr=split if short else None,
    log_short_qr=split if short else None,
    rest_q=split,
    log_rest_q=split,
    norm_rate_q=split,
    log_rate_q=split,
    self_rates=whole,
    rest_rate=whole,
  )


@functools.cache
def _over_grid(kernel, mesh, short, vectors):
  """A kernel whose source rows and targets are split over the devices."""
  rows, targets = PartitionSpec(meshes.AXIS), PartitionSpec(_TARGETS)
  pairs = PartitionSpec(meshes.AXIS, _TARGETS)
  # Two or three tables of all pairs, and the norms of the rows.
  tables = 3 if vectors else 2
  return jax.jit(
    jax.shard_map(
      functools.partial(kernel, epsilon=divergence.EPSILON),
      mesh=mesh,
      in_specs=(rows, _specs(short), *[targets] * vectors),
      out_specs=(*[pairs] * tables, rows, rows),
      # Sums start from zeros, which do not vary over the devices.
      check_vma=False,
    )
  )


@functools.cache
def faster_operands():
  """'bfloat16' where its products take less than two thirds of the time."""
  rows, seconds = 512, _product_seconds('float32', 512)
  # What it takes to start a product on an accelerator hides the product.
  while (
    jax.default_backend() != 'cpu'
    and seconds < _PRODUCT_SECONDS
    and rows < _PRODUCT_ROWS
  ):
    rows *= 2
    seconds = _product_seconds('float32', rows)
  faster = _product_seconds('bfloat16', rows) < seconds / 1.5
  return 'bfloat16' if faster else 'float32'


def _product_seconds(operands, rows):
  """The least of five times of a product of so many rows, twice as wide."""
  value_nd = jnp.ones((rows, 2 * rows), OPERANDS[operands][0])
  product = jax.jit(
    functools.partial(
      jax.lax.dot_general,
      dimension_numbers=(((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )
  )
  jax.block_until_ready(product(value_nd, value_nd))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(product(value_nd, value_nd))
    times.append(time.perf_counter() - start)
  return min(times)


def _leading(z_nd, rank):
  """Orthonormal columns that hold most of the rows z, float64 [d, r].

  Source: N. Halko, P. Martinsson, J. Tropp, Finding structure with randomness,
  SIAM Review 2011, algorithm 4.4.
  """
  many = min(rank + rank // 4 + 4, *z_nd.shape)
  draw = np.random.default_rng(0)
  y_dm = z_nd.T @ draw.standard_normal((len(z_nd), many), np.float32)
  for _ in range(2):
    y_dm, _ = np.linalg.qr(y_dm)
    y_dm = z_nd.T @ (z_nd @ y_dm)
  base_dm, _ = np.linalg.qr(y_dm.astype(np.float64))
  part_nm = z_nd @ base_dm.astype(np.float32)
  _, vector_mm = np.linalg.eigh((part_nm.T @ part_nm).astype(np.float64))
  return base_dm @ vector_mm[:, ::-1][:, :rank]


def _gamma(n):
  return n * ROUNDING / (1 - n * ROUNDING)


def _single(value):
  """Rounded to float32, held in float64."""
  return np.asarray(value, np.float32).astype(np.float64)


def _up(value):
  """float32 that is not smaller."""
  single = np.asarray(value, np.float32)
  return np.nextafter(single, np.float32(np.inf))


def _norm(value):
  return float(np.linalg.norm(value))


def _rows(value):
  # Faster than np.linalg.norm, which writes the squares down.
  return np.sqrt(np.einsum('nd,nd->n', value, value))
