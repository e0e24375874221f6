"""Descriptors -> neighbours: the exact k nearest source images per target.

The source streams past the resident target in blocks. Each block is screened
in float32 by two matrix products on the devices; every pair that could still
be among the k nearest, given a proven bound on the rounding error of the
screen, is then evaluated in float64 in the direct form and merged into one
table. So the table is exact at every moment, ties go to the lower source
index whatever the block size, and nothing of the size of the source is held.
"""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sjft_jax import files, progress
from sjft_jax import mesh as meshes
from sjft_jax.ops import divergence, topk

# Half the distance from 1 to the next float32: one rounding's relative error.
ROUNDING = 2.0**-24
# Between two saves of the table: many targets take a while to write.
SAVE_SECONDS = 20


@dataclasses.dataclass
class Table:
  """The k nearest so far, and what has been seen.

  distance_qk: float64 [q, k], nats, ascending; inf where there is none yet.
  index_qk: int64 [q, k], source positions; -1 where there is none yet.
  seen: source images read, bad ones included.
  evaluated: pairs that went through float64.
  bound: the largest error bound of the screen, nats.
  bad_index, bad_reason: source images that could not be decoded.
  """

  distance_qk: np.ndarray
  index_qk: np.ndarray
  seen: int = 0
  evaluated: int = 0
  bound: float = 0.0
  bad_index: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )
  bad_reason: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, 'U1')
  )

  @classmethod
  def empty(cls, targets: int, k: int):
    """A table of `targets` rows for a source of which nothing was seen."""
    return cls(
      np.full((targets, k), np.inf), np.full((targets, k), -1, np.int64)
    )

  @classmethod
  def load(cls, path):
    """The table that `save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
      value = {f.name: stored[f.name] for f in dataclasses.fields(cls)}
    return cls(**{k: v if v.ndim else v.item() for k, v in value.items()})

  def save(self, path):
    """Writes the table beside `path`, then renames."""
    with files.replacing(path) as file:
      np.savez(
        file,
        **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
      )

  def add_bad(self, bad):
    """Remembers undecodable images: (position, reason) pairs."""
    if bad:
      index, reason = zip(*bad, strict=True)
      self.bad_index = np.append(self.bad_index, index)
      self.bad_reason = np.append(self.bad_reason, reason)


class Screen:
  """Targets made ready on the devices; bounds and distances of source blocks.

  Args:
    target_qd: histograms, float64 [q, d].
    log_target_qd: log(p + e), float64 [q, d].
    weight_d: float64 [d].
    log_error: largest absolute error of the devices' float32 logarithm over
      all values that occur, nats.
    mesh: the source rows of a block are split over its devices.
  """

  def __init__(self, target_qd, log_target_qd, weight_d, log_error, mesh):
    half_d = weight_d / 2
    # float32 constants, so that both sides subtract the very same numbers.
    centre_d = target_qd.mean(axis=0).astype(np.float32)
    log_centre_d = log_target_qd.mean(axis=0).astype(np.float32)
    target_qd = target_qd - centre_d[None]
    log_target_qd = log_target_qd - log_centre_d[None]
    root_d = np.sqrt(half_d)

    def norm(value):
      return np.linalg.norm(root_d * value, axis=-1)

    self._norm_q, self._log_norm_q = norm(target_qd), norm(log_target_qd)
    self._centre_norm, self._log_error = norm(centre_d), log_error * norm(1.0)
    self._dims = len(weight_d)
    self._mesh = mesh
    constants = (
      half_d * target_qd,
      half_d * log_target_qd,
      (half_d * target_qd * log_target_qd).sum(axis=1),
      centre_d,
      log_centre_d,
      half_d,
    )
    self._constants = meshes.replicate(
      [np.asarray(c, np.float32) for c in constants], mesh
    )

  def __call__(self, counts_sd, pixels_d):
    """Screened distances of one block, and their error bound per target.

    Args:
      counts_sd: pixel counts, int32 [s, d]; s divides by the device count. A
        row without pixels is padding: its distance is inf.
      pixels_d: pixels in each bin's channel, float32 [d].

    Returns:
      (distance_qs float32 [q, s] on the devices, bound_q float64 [q], nats).
    """
    distance_qs, norm_s, log_norm_s = _screen(
      *self._constants, meshes.shard(counts_sd, self._mesh), pixels_d
    )
    norm = float(jnp.max(norm_s))
    log_norm = float(jnp.max(log_norm_s))
    return distance_qs, self.error_bound(norm, log_norm)

  def error_bound(self, norm_s, log_norm_s):
    """How far the screen can be from the exact distance, nats, float64 [q].

    With |x| the norm weighted by a: <x, y> of d rounded terms is off by at
    most g |x| |y|, g = d u / (1 - d u), in any order of summation; its
    operands are off by u (2 |q'| + |m|) for a fraction and by t |1| + u |Q'|
    for a logarithm with absolute error t. The bound sums these for the two
    products and the source's own term; 1.01 covers the products of errors
    and the norms' own rounding.

    Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 3.1.
    """
    u = ROUNDING
    n = self._dims + 4
    g = n * u / (1 - n * u)
    p, log_p, q, log_q = self._norm_q, self._log_norm_q, norm_s, log_norm_s
    off_p, off_q = (u * (2 * x + self._centre_norm) for x in (p, q))
    # The targets' logarithms are rounded from float64.
    off_log_p, off_log_q = 2 * u * log_p, self._log_error + u * log_q
    product = g * (p * log_q + log_p * q + q * log_q) + 4 * u * p * log_p
    operand = p * off_log_q + off_p * log_q + log_p * off_q + off_log_p * q
    return 1.01 * (product + operand + q * off_log_q + off_q * log_q)


@jax.jit
def _screen(
  scaled_qd,
  scaled_log_qd,
  self_q,
  centre_d,
  log_centre_d,
  half_d,
  counts_sd,
  pixels_d,
):
  fraction_sd = counts_sd.astype(jnp.float32) / pixels_d[None]
  log_sd = jnp.log(fraction_sd + divergence.EPSILON) - log_centre_d[None]
  source_sd = fraction_sd - centre_d[None]
  distance_qs = divergence.lifted(
    scaled_qd, scaled_log_qd, self_q, source_sd, log_sd, half_d
  )
  padding_s = counts_sd.sum(axis=1) == 0
  return (
    jnp.where(padding_s[None], jnp.inf, distance_qs),
    jnp.sqrt(jnp.matmul(source_sd**2, half_d)),
    jnp.sqrt(jnp.matmul(log_sd**2, half_d)),
  )


def nearest(describer, target, source, *, k, mesh, partial=None, rows=1024):
  """The k nearest source images of every target image, exactly.

  Args:
    describer: from `describe.fit`.
    target: data set of q readable images.
    source: data set of at least k readable images; read once, in order.
    k: neighbours per target image.
    mesh: the blocks are described and screened over its devices.
    partial: path of a file that keeps the table while the search runs; a
      killed search goes on from it. None keeps nothing.
    rows: source images screened at a time.

  Returns:
    The finished `Table`: equal to sorting all float64 distances stably. Rows
    end in inf and -1 where fewer than k source images are readable.
  """
  counts_qd = np.concatenate(
    [block.counts_nd for block in describer.blocks(target, rows=rows)]
  )
  target_qd = describer.fractions(counts_qd)
  log_target_qd = describer.logs(counts_qd)
  weight_d = describer.weight_d
  screen = Screen(
    target_qd, log_target_qd, weight_d, describer.log_error(), mesh
  )
  table = Table.empty(len(target), k)
  if partial is not None and pathlib.Path(partial).exists():
    table = Table.load(partial)
  pixels_d = np.asarray(describer.pixels_d, np.float32)
  saved = time.monotonic()
  with progress.bar(len(source), 'search', initial=table.seen) as bar:
    for block in describer.blocks(source, rows=rows, start=table.seen):
      n = len(block.counts_nd)
      padded_sd = np.zeros(
        (meshes.round_up(rows, mesh), len(weight_d)), np.int32
      )
      padded_sd[:n] = block.counts_nd
      distance_qs, bound_q = screen(padded_sd, pixels_d)
      row_n, column_n = _survivors(
        meshes.fetch(distance_qs)[:, :n], table.distance_qk[:, -1], bound_q, k
      )
      distance_n = _evaluate(
        describer, target_qd, log_target_qd, block.counts_nd, row_n, column_n
      )
      _merge(table, row_n, block.index_n[column_n], distance_n)
      table.evaluated += len(row_n)
      table.bound = max(table.bound, float(bound_q.max()))
      table.add_bad(block.bad)
      bar.update(block.stop - table.seen)
      table.seen = block.stop
      if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
        table.save(partial)
        saved = time.monotonic()
  return table


def _survivors(distance_qs, kth_q, bound_q, k):
  """Pairs that may be among the k nearest: rows ascending, then columns."""
  if np.isinf(kth_q).any() and distance_qs.shape[1] > k:
    # The block alone already has k distances no farther than these.
    block_q = np.partition(distance_qs, k - 1, axis=1)[:, k - 1] + bound_q
    kth_q = np.minimum(kth_q, block_q)
  limit_q = np.nextafter(
    (kth_q + bound_q).astype(np.float32), np.float32(np.inf)
  )
  return np.nonzero(distance_qs <= limit_q[:, None])


def _evaluate(describer, target_qd, log_target_qd, counts_sd, row_n, column_n):
  """Exact distances of the pairs (row, column) of one block, float64 [n]."""
  distance_n = np.empty(len(row_n))
  used_s, column_n = np.unique(column_n, return_inverse=True)
  source_sd = describer.fractions(counts_sd[used_s])
  log_source_sd = describer.logs(counts_sd[used_s])
  # Pieces that stay in the processor's cache.
  step = max(1, 2**18 // target_qd.shape[1])
  for start in range(0, len(row_n), step):
    part = slice(start, start + step)
    row, column = row_n[part], column_n[part]
    distance_n[part] = divergence.jeffreys_pairs(
      target_qd[row],
      log_target_qd[row],
      source_sd[column],
      log_source_sd[column],
      describer.weight_d,
    )
  return distance_n


def _merge(table, row_n, index_n, distance_n):
  """Merges new pairs, given in order of row and index, into the table."""
  if not len(row_n):
    return
  rows_r, first_r, many_r = np.unique(
    row_n, return_index=True, return_counts=True
  )
  # Each row's pairs side by side, filled up with empty places.
  place_n = np.arange(len(row_n)) - np.repeat(first_r, many_r)
  at = np.repeat(np.arange(len(rows_r)), many_r), place_n
  distance_rm = np.full((len(rows_r), many_r.max()), np.inf)
  index_rm = np.full(distance_rm.shape, -1, np.int64)
  distance_rm[at], index_rm[at] = distance_n, index_n
  k = table.distance_qk.shape[1]
  table.distance_qk[rows_r], table.index_qk[rows_r] = topk.merge(
    table.distance_qk[rows_r], table.index_qk[rows_r], distance_rm, index_rm, k
  )


SCHEMA = pa.schema(
  [
    ('target_id', pa.string()),
    ('source_id', pa.string()),
    ('rank', pa.int32()),
    ('distance', pa.float64()),
  ]
)


def write(path, table, target_ids, source_ids):
  """Writes neighbours.parquet: target_id, source_id, rank from 0, distance."""
  row_n, rank_n = np.nonzero(table.index_qk >= 0)
  columns = (
    target_ids[row_n],
    source_ids[table.index_qk[row_n, rank_n]],
    rank_n.astype(np.int32),
    table.distance_qk[row_n, rank_n],
  )
  rows = pa.table([pa.array(c) for c in columns], schema=SCHEMA)
  with files.replacing(path) as file:
    pq.write_table(rows, file, compression='zstd')


def read(path, target_ids, source_ids):
  """The (distance_qk, index_qk) of neighbours.parquet, as `nearest` has them.

  Raises:
    ValueError: if it names an image that is not in `target_ids`, `source_ids`.
  """
  columns = pq.read_table(path, schema=SCHEMA).to_pydict()
  row_of = {name: i for i, name in enumerate(target_ids.tolist())}
  index_of = {name: i for i, name in enumerate(source_ids.tolist())}
  try:
    row_n = [row_of[name] for name in columns['target_id']]
    index_n = [index_of[name] for name in columns['source_id']]
  except KeyError as error:
    raise ValueError(f'No image is called {error}.') from error
  k = max(columns['rank'], default=-1) + 1
  table = Table.empty(len(target_ids), k)
  table.distance_qk[row_n, columns['rank']] = columns['distance']
  table.index_qk[row_n, columns['rank']] = index_n
  return table.distance_qk, table.index_qk
