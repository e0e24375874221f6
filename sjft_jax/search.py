"""Descriptors -> neighbours: the exact k nearest source images per target.

The source streams past the resident target in blocks. The devices bound every
distance from below and above (`screen`); pairs whose lower bound exceeds what
k upper bounds keep within are settled, and the few that stay open are kept
until the end of their shard, a stretch of the source. Then the distances of
the most promising are computed in float64, which settles most of the others,
and the rest likewise (`exact`). So the table is exact after every shard, ties
go to the lower source index, and neither blocks nor shards, devices nor
processes change a bit of it; of the size of the source, only a byte per image
is held.
"""

import dataclasses
import hashlib

import numpy as np

from sjft_jax import (
  exact,
  files,
  machine,
  paths,
  processes,
  progress,
  streams,
)
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError
from sjft_jax.ops import screen as kernels
from sjft_jax.screen import Screen
from sjft_jax.tables import Table

# The counts of one shard are held: 2**28 numbers are 512 MB as uint16, and
# memory does not grow with the source. But every shard of few images, against
# many neighbours, leaves many pairs to float64.
_SHARD_NUMBERS = 2**28
_SHARD_LEAST = 2**12
# A float64 distance takes the time of about this many in the products over
# all bins (19 to 23 of float32, at 1,536 and at 35,200 bins), and few
# directions leave two or three times as many pairs open: they pay where the
# neighbours are a small enough part of the source.
_EXACT_COST = 20
# And finding the directions takes as long as screening this many images.
_DIRECTIONS_COST = 2**17
# A shard is also what is done again after a kill.
_SHARD_IMAGES = 2**17
# Source images screened at a time.
ROWS = 1024
# Upper bounds are counted when there are this part of k of them per target:
# counting takes time, and limits that come late leave more pairs open.
_COUNTED_PART = 4
# Images of a shard that may be read a second time, before it is an outage.
_AGAIN = 32
# Of shards: another one where the digits of distances differ, or what is kept.
BUILD = 3


@dataclasses.dataclass
class Seen:
  """What the search of one shard did; shards add up.

  images: source images read, bad ones included.
  good: those that could be described.
  opened: pairs that the bounds left open when they were screened.
  evaluated_q: pairs whose distance was computed in float64, per target.
  widened_q: those of them beyond the k most promising of their shard.
  bound: the most by which rounding could move a bound, nats.
  """

  images: int = 0
  good: int = 0
  opened: int = 0
  evaluated_q: int | np.ndarray = 0
  widened_q: int | np.ndarray = 0
  bound: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
  """The finished search.

  table: of k places, or fewer where the source has fewer images.
  beyond_q: distance of the nearest image left out, nats, float64 [q]; inf
    where none was.
  seen: sums over the shards.
  times_s: how often the stream gave each source image, good or bad, uint8 [s].
  bad: {position: reason} of the source images that could not be decoded.
  screens: (operands, rank) of the screens that shards went through.
  """

  table: Table
  beyond_q: np.ndarray
  seen: Seen
  times_s: np.ndarray
  bad: dict
  screens: list


def nearest(
  target,
  source,
  *,
  k,
  mesh,
  directory=None,
  share=(0, 1),
  rows=ROWS,
  shard_images=None,
  target_parts=1,
  rank=None,
  operands='auto',
  max_bad_fraction=1.0,
):
  """The k nearest source images of every target image, exactly.

  Args:
    target: stream of q readable images, see `streams`.
    source: stream; every image is read once, by one of the processes, and once
      more if it cannot be read at first.
    k: neighbours per target image.
    mesh: of this process's devices; blocks are screened over them.
    target_parts: devices that share the targets, see `Screen`.
    directory: where finished shards are kept; a killed search goes on after
      them. Processes share it. None, for one process, keeps nothing.
    share: (index, count) of this process among those that share the work.
    rows: source images screened at a time.
    shard_images: source images per shard; None chooses.
    rank, operands: of the screen, see `Screen`; they cannot change a result.
      With rank None, a small source is screened by products over all bins.
    max_bad_fraction: the largest share of the source to go on without because
      it cannot be read now, also when it is asked for again at a shard's end.
      A shard of which more than that, and not only a few, cannot be read at
      first is given up.

  Returns:
    `Found`, the same in every process: equal to sorting all float64 distances
    stably. Rows end in inf and -1 where too few source images are readable.

  Raises:
    UserError: if a target image could not be read, or too many of the source;
      or if what is in `directory` was begun where images are described
      otherwise.
  """
  describer = target.describer
  target_qd = target.one_block(rows).counts_nd
  streams.refuse_lost_target(len(target_qd), len(target))
  grid = _grid(len(source), len(describer.weight_d), share[1], shard_images)
  digest = _digest(target_qd, describer) if directory else ''
  shards = _Shards(directory, grid, share, digest)
  # One place more than asked for, to know by how much the next one misses.
  table = Table.empty(len(target_qd), k + 1)
  seen, bad, screens = Seen(), {}, set()
  times_s = np.zeros(len(source), np.uint8)

  def take(shard, result):
    for field in dataclasses.fields(Seen):
      value, more = getattr(seen, field.name), result[field.name]
      both = max(value, more) if field.name == 'bound' else value + more
      setattr(seen, field.name, both)
    times_s[slice(*shard)] += result['times']
    screens.add((str(result['operands']), int(result['rank'])))
    bad.update(
      zip(result['bad_index'].tolist(), result['bad_reason'], strict=True)
    )

  def merge(shard, result):
    table.merge(*result['pairs'])
    take(shard, result)

  done = {s for s in shards.ranges if shards.has(s)}
  for shard in sorted(done):
    merge(shard, shards.load(shard))
  mine = [s for s in shards.ranges[share[0] :: share[1]] if s not in done]
  if rank is None and len(source) < max(_DIRECTIONS_COST, 8 * _EXACT_COST * k):
    rank = 0
  if mine:
    screen = Screen(
      target_qd,
      describer,
      mesh,
      target_parts=target_parts,
      rank=rank,
      operands=operands,
    )
    work = _ShardSearch(
      screen,
      exact.Exact(target_qd, describer),
      k + 1,
      rows,
      max(stop - start for start, stop in shards.ranges),
      max_bad_fraction,
    )
    total = sum(stop - start for start, stop in mine)
    with progress.bar(total, 'search') as bar:
      for shard in mine:
        # What the table holds only makes the shard's own list shorter.
        result = work.search(source, shard, table, bar)
        shards.save(shard, result)
        take(shard, result)
  for shard in shards.ranges:
    if shard not in done and shard not in mine:
      merge(shard, shards.wait(shard))
  lost = streams.passing(bad.items())
  if len(lost) > max_bad_fraction * len(source):
    # A few of every shard: these are read again by the next start.
    shards.forget(lost)
    streams.refuse_outage(
      lost, source.dataset.ids, len(source), max_bad_fraction
    )
  beyond_q = table.distance_qk[:, k].copy()
  table = Table(table.distance_qk[:, :k], table.index_qk[:, :k])
  return Found(
    table=table,
    beyond_q=beyond_q,
    seen=seen,
    times_s=times_s,
    bad=bad,
    screens=sorted(screens),
  )


def _grid(images, dims, processes, shard_images):
  """Images per shard: few shards, but every process has its share."""
  if shard_images is None:
    shard_images = max(_SHARD_LEAST, _SHARD_NUMBERS // dims)
    shard_images = min(_SHARD_IMAGES, shard_images)
    shard_images = min(shard_images, -(-images // processes))
    # Shards begin where the units of a cache do.
    shard_images = -(-shard_images // streams.UNIT) * streams.UNIT
  return [
    (start, min(start + shard_images, images))
    for start in range(0, images, shard_images)
  ]


def _digest(target_qd, describer):
  """Of what must be the same wherever one search is worked on.

  Counts of the targets stand for those of all images.
  """
  digest = hashlib.sha256()
  table, _ = exact.log_table(describer)
  for value in (target_qd.astype('<i4', copy=False), table.astype('<f8')):
    digest.update(np.ascontiguousarray(value).ravel().view(np.uint8))
  return digest.hexdigest()


def clear(directory):
  """Removes finished shards, once every process has read them."""
  processes.meet()
  if processes.first():
    paths.remove_tree(paths.path(directory))


class _Shards:
  """The tables of finished shards, in a directory or nowhere.

  The first process writes down how the source is divided; a search that goes
  on with another number of processes keeps to it. And it writes down a digest
  of how images are described there: another kind of machine may round their
  responses otherwise, and one table would rank distances of both.
  """

  def __init__(self, directory, grid, share, digest):
    self._directory = directory and paths.path(directory)
    self.ranges = grid
    if self._directory:
      path, here = self._directory / 'shards.json', machine.described()
      if not path.exists() and share[0] == 0:
        value = {'digest': digest, 'described_on': here, 'shards': grid}
        files.write_json(path, value)
      files.wait_for(path)
      begun = files.read_json(path)
      if begun['digest'] != digest:
        there = begun['described_on']
        raise UserError(
          f'The search in {self._directory} was begun on '
          f'{machine.words(there)}; here, on {machine.words(here)}, the same '
          'target images are described otherwise. '
          + (
            'They, or how they are decoded, have changed: restore them, '
            if there == here
            else 'All processes need one kind of machine: go on with that one, '
          )
          + 'or choose another --workdir. (Of GPUs, '
          'XLA_FLAGS=--xla_gpu_autotune_level=0 makes equal ones round alike.)'
        )
      self.ranges = [tuple(shard) for shard in begun['shards']]

  def _path(self, shard):
    return self._directory / f'shard-{shard[0]}-{shard[1]}.npz'

  def forget(self, positions):
    """Removes the shards that hold any of these positions."""
    if self._directory:
      for start, stop in self.ranges:
        if any(start <= i < stop for i in positions):
          self._path((start, stop)).unlink(missing_ok=True)

  def has(self, shard):
    return bool(self._directory) and self._path(shard).exists()

  def save(self, shard, value):
    if self._directory:
      pairs = dict(
        zip(('row', 'index', 'distance'), value['pairs'], strict=True)
      )
      rest = {k: v for k, v in value.items() if k != 'pairs'}
      with files.replacing(self._path(shard)) as file:
        np.savez(file, **pairs, **rest)

  def load(self, shard):
    stored = files.read_npz(self._path(shard))
    value = {k: v if v.ndim else v.item() for k, v in stored.items()}
    pairs = tuple(value.pop(name) for name in ('row', 'index', 'distance'))
    return value | {'pairs': pairs}

  def wait(self, shard):
    # No collective: processes may be done hours apart, and a dead one ends
    # the others through the coordination service.
    files.wait_for(self._path(shard))
    return self.load(shard)


class _ShardSearch:
  """What the shards of one process share."""

  def __init__(self, screen, exact_, k, rows, longest, max_bad_fraction):
    self._screen, self._exact = screen, exact_
    self._k, self._rows, self._longest = k, rows, longest
    self._max_bad_fraction = max_bad_fraction

  def search(self, source, shard, table, bar):
    """Merges a shard into the table.

    Returns what `_Shards` keeps of it: the pairs among the k nearest so far.
    """
    start, stop = shard
    places = source.places(start, stop)
    # As many rows for the last shard: one program computes distances of all.
    counts_sd = meshes.aligned(
      (self._longest, self._screen.dims), self._screen.count_type
    )
    position_s, bad = np.empty(stop - start, np.int64), []
    open_pairs = _OpenPairs(self._screen, table, self._k)
    good, pending, times_s = 0, None, np.zeros(stop - start, np.uint8)
    for block in self._read(source, shard, len(places), bar):
      _count(block, times_s, start)
      n = len(block.counts_nd)
      counts_sd[good : good + n] = block.counts_nd
      on_device = self._screen.block(counts_sd[good : good + n], self._rows)
      position_s[good : good + n] = block.index_n
      # The devices work on this block while the host looks at the last.
      asked = open_pairs.ask(on_device, n, good)
      if pending is not None:
        open_pairs.add(pending)
      pending = asked
      good += n
      bad += block.bad
    if not np.array_equal(start + np.flatnonzero(times_s), places):
      raise RuntimeError(
        f'The stream gave {np.count_nonzero(times_s)} images of {start}..{stop}'
        f', which are not the {len(places)} that it has there.'
      )
    if pending is not None:
      open_pairs.add(pending)
    first_q, widened_q = self._settle(table, open_pairs, counts_sd, position_s)
    index, reason = zip(*bad, strict=True) if bad else ((), ())
    return {
      'pairs': table.pairs(start, stop),
      'images': good + len(bad),
      'good': good,
      'times': times_s,
      'opened': open_pairs.opened,
      'evaluated_q': first_q + widened_q,
      'widened_q': widened_q,
      'bound': open_pairs.bound,
      'operands': self._screen.operands,
      'rank': self._screen.rank,
      'bad_index': np.array(index, np.int64),
      'bad_reason': np.array(reason, np.str_),
    }

  def _read(self, source, shard, images, bar):
    """The blocks of a shard; what cannot be read now comes last."""

    def refuse(lost, images):
      # A shard that is saved is without them for good.
      streams.refuse_outage(
        lost, source.dataset.ids, images, self._max_bad_fraction
      )

    lost, still, seen = [], [], shard[0]
    for block in source.blocks(*shard, self._rows):
      passing = streams.passing(block.bad)
      if passing:
        lost += passing
        if len(lost) > _AGAIN:
          refuse(lost, images)
      bad = [(i, reason) for i, reason in block.bad if i not in passing]
      yield dataclasses.replace(block, bad=bad)
      bar.update(block.stop - seen)
      seen = block.stop
    for block in source.again(np.array(lost), self._rows) if lost else ():
      still += streams.passing(block.bad)
      refuse(still, len(source))
      yield block

  def _settle(self, table, open_pairs, counts_sd, position_s):
    """Merges all that may belong into the table, in two steps.

    Returns the pairs evaluated per target, [q], in either step.
    """
    counts_sd = self._exact.put(counts_sd)
    row_n, column_n, lower_n = open_pairs.pairs()
    first_n = _lowest(row_n, lower_n, open_pairs.limit_q, self._k)
    evaluated = []
    for chosen_n in (first_n, ~first_n):
      # Exact distances of the first half tighten the limits of the second.
      limit_q = table.distance_qk[:, -1]
      chosen_n &= lower_n <= limit_q[row_n]
      row, column = row_n[chosen_n], column_n[chosen_n]
      distance = self._exact(counts_sd, column, row)
      table.merge(row, position_s[column], distance)
      evaluated.append(np.bincount(row, minlength=len(limit_q)))
    return evaluated


def _count(block, times_s, start):
  """Counts the images of a block, of which the shard has had none yet."""
  bad = [i for i, _ in block.bad]
  at_n = np.concatenate([block.index_n, np.array(bad, np.int64)]) - start
  new = not len(at_n) or 0 <= at_n.min() <= at_n.max() < len(times_s)
  if new:
    np.add.at(times_s, at_n, 1)
    new = (times_s[at_n] == 1).all()
  if not new:
    raise RuntimeError(
      'The stream gave an image twice, or one that is not in '
      f'{start}..{start + len(times_s)}.'
    )


def _lowest(row_n, lower_n, limit_q, k):
  """Marks each row's k pairs of lowest bound, and a few more."""
  cells = kernels.CELLS
  per_nat_q = cells / np.maximum(limit_q, 1e-12)
  cell_n = np.clip(lower_n * per_nat_q[row_n], 0, cells - 1).astype(np.int32)
  counts_qc = np.bincount(
    row_n * cells + cell_n, minlength=len(limit_q) * cells
  ).reshape(-1, cells)
  enough_qc = np.cumsum(counts_qc, axis=1) >= k
  last_q = np.where(enough_qc[:, -1], enough_qc.argmax(axis=1), cells)
  return cell_n <= last_q[row_n]


class _OpenPairs:
  """The pairs of a shard that the bounds leave open.

  Upper bounds are only counted, in cells of a fixed width per target: the
  k-th smallest lies in the first cell that k of them reach, which gives
  `limit_q`, nats.
  """

  def __init__(self, screen, table, k):
    self._screen, self._k = screen, k
    targets = len(table.distance_qk)
    filled = int(np.isfinite(table.distance_qk).sum(axis=1).min(initial=k))
    # Upper bounds in full, as long as there are fewer than k.
    self._upper = [table.distance_qk[:, :filled].T]
    self._many = filled
    self.limit_q = np.full(targets, np.inf)
    self._farthest_q = None
    self._found, self._waiting = [], []
    self.opened = 0
    self.bound = 0.0
    self._start_counting()

  def _start_counting(self):
    if self._many < self._k:
      return
    upper_nq = np.concatenate(self._upper)
    self._upper = None
    self._farthest_q = np.partition(upper_nq, self._k - 1, axis=0)[self._k - 1]
    self._cells_q = self._screen.cells(self._farthest_q)
    cell_nq = np.clip(upper_nq * self._cells_q, 0, kernels.CELLS - 1)
    row = np.broadcast_to(np.arange(upper_nq.shape[1]), upper_nq.shape)
    self._counts_qc = np.zeros((upper_nq.shape[1], kernels.CELLS), np.int64)
    self._count(row.ravel(), cell_nq.astype(np.uint8).ravel())

  def _count(self, row_n, cell_n):
    """Takes in upper bounds; counts them once it is worth the time."""
    self._waiting.append(row_n * kernels.CELLS + cell_n)
    many = sum(map(len, self._waiting))
    if many * _COUNTED_PART >= self._k * len(self.limit_q):
      self._tighten()

  def _tighten(self):
    if not self._waiting:
      return
    counts_qc = self._counts_qc
    counts_qc += np.bincount(
      np.concatenate(self._waiting), minlength=counts_qc.size
    ).reshape(counts_qc.shape)
    self._waiting = []
    cell_q = (np.cumsum(counts_qc, axis=1) >= self._k).argmax(axis=1)
    # A little more than the cell's upper edge: cells were found in float32
    # (docs/bounds.md, L20).
    limit_q = (cell_q + 1.01) / self._cells_q
    self.limit_q = np.minimum(self.limit_q, limit_q)

  def ask(self, block_sd, n, first):
    """Starts a block on the devices: n rows, numbered from `first`.

    Returns what `add` takes; None for the first blocks, which are taken in at
    once, since they set the limits that the others are held against.
    """
    if self._farthest_q is None:
      self._add_whole(block_sd, n, first)
      return None
    return (
      n,
      first,
      self._screen.candidates(block_sd, self.limit_q, self._farthest_q),
    )

  def _add_whole(self, block_sd, n, first):
    lower_sq, upper_sq, *norms = self._screen.bounds(block_sd, n)
    self.bound = max(self.bound, self._screen.rounding(*norms))
    self._upper.append(upper_sq)
    self._many += n
    self._start_counting()
    column_n, row_n = np.nonzero(
      lower_sq + self._screen.floor_q[None] <= self.limit_q[None]
    )
    lower_n = lower_sq[column_n, row_n]
    self._keep(
      row_n.astype(np.int32), column_n.astype(np.int32), lower_n, first
    )

  def add(self, asked):
    """Takes in the open pairs of a block."""
    n, first, answer = asked
    open_sq, lower_sq, cell_sq, *norms = self._screen.fetch(answer, n)
    self.bound = max(self.bound, self._screen.rounding(*norms))
    at = np.flatnonzero(open_sq)
    column_n, row_n = np.divmod(at.astype(np.int32), np.int32(open_sq.shape[1]))
    self._keep(row_n, column_n, lower_sq.ravel()[at], first)
    self._count(row_n, cell_sq.ravel()[at])

  def _keep(self, row_n, column_n, lower_n, first):
    self.opened += len(row_n)
    self._found.append((row_n, column_n + np.int32(first), lower_n))

  def pairs(self):
    """(row, column, lower bound in nats) of what is still open."""
    self._tighten()
    floor_q = self._screen.floor_q
    kept = []
    for row_n, column_n, lower_n in self._found:
      lower_n = lower_n + floor_q[row_n]
      keep_n = lower_n <= self.limit_q[row_n]
      kept.append((row_n[keep_n], column_n[keep_n], lower_n[keep_n]))
    if not kept:
      return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0)
    return tuple(np.concatenate(part) for part in zip(*kept, strict=True))
