"""What a run selected: its pairs, and the images themselves."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sjft_jax import (
  certificate,
  files,
  guard,
  paths,
  progress,
  round_files,
  tables,
  workdirs,
)
from sjft_jax import selection as rules
from sjft_jax.data import datasets
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError

SCHEMA = pa.schema(
  [
    ('target_id', pa.string()),
    ('target_label', pa.int32()),
    ('target_class', pa.string()),
    ('source_id', pa.string()),
    ('source_label', pa.int32()),
    ('source_class', pa.string()),
    ('rank', pa.int32()),
    ('distance', pa.float64()),
  ]
)

# With these K alone decides, and a reader may choose another one.
_BY_RANK = ('neighbours', 'features')
_PAIRS = 2**20  # of a part: the names of all would take gigabytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
  """What a run selected, as n pairs, by target image.

  Where the rule gives all target images the same source images, these are
  there once, without a target image.

  Attributes:
    target: the target training images.
    pool: the source, without what the guard withheld.
    of: what this is a selection of, in words.
    target_n: positions of the pairs' target images, int64 [n]; -1 = all.
    source_n: positions of their source images in the pool, int64 [n].
    rank_n: of the pairs in the search, int32 [n], 0 = nearest; -1 of a pair
      that it does not have, or not so deep.
    distance_n: likewise, float64 [n], nats (by features, without unit); NaN of
      a pair that it does not have.
    index: positions in the pool of the images selected, int64 [m], ascending.
  """

  target: Dataset
  pool: Dataset
  of: str
  target_n: np.ndarray
  source_n: np.ndarray
  rank_n: np.ndarray
  distance_n: np.ndarray
  index: np.ndarray

  @property
  def shared(self) -> bool:
    """Whether all target images have the same source images."""
    return bool((self.target_n < 0).all())

  def pairs(self) -> Iterator[pa.Table]:
    """The pairs in parts of a million, as tables of SCHEMA."""
    sides = [
      (side, dataset, place_n, pa.array(dataset.ids), pa.array(dataset.classes))
      for side, dataset, place_n in (
        ('target', self.target, self.target_n),
        ('source', self.pool, self.source_n),
      )
    ]
    for first in range(0, len(self.target_n), _PAIRS):
      part, columns = slice(first, first + _PAIRS), {}
      for side, dataset, place_n, ids, classes in sides:
        place, without = place_n[part], place_n[part] < 0
        label = pa.array(dataset.labels[place], mask=without)
        columns |= {
          f'{side}_id': ids.take(pa.array(place, mask=without)),
          f'{side}_label': label,
          f'{side}_class': classes.take(label),
        }
      without = self.rank_n[part] < 0
      columns |= {
        'rank': pa.array(self.rank_n[part], mask=without),
        'distance': pa.array(self.distance_n[part], mask=without),
      }
      yield pa.table(columns, SCHEMA)


def load(
  workdir, k: int | None = None, of_round: int | str | None = None
) -> Selection:
  """The selection that a run has made.

  Without k and of_round it is what the last finished round trained on. Where
  none is finished, it is all that the search found, if K is all that is open;
  with another rule, budget.images or budget.least_per_class, it is what round 0
  begins with.

  Args:
    workdir: directory of the run.
    k: the k nearest of every target image that the search found; 0 = all.
    of_round: what this round trained on, from 0, or 'last'. What round 0 begins
      with is known before it is finished, and where there are no rounds.

  Returns:
    The pairs, and where the images are.

  Raises:
    UserError: if there is no selection or no such round, if a search by
      descriptors is not as it was written, or if images have changed.
  """
  workdir = paths.path(workdir)
  c = _settings(workdir)
  m = _round(c, workdir, k, of_round)
  target, pool = _opened(c, workdir)
  rule = rules.RULES[c.selection]
  index_qk = distance_qk = None
  if rule.searched:
    path = workdir / 'selection' / 'neighbours.parquet'
    table = tables.read(path, target.ids, pool.ids)
    # Those that could not be read have no neighbours, and took no part.
    part_q = np.flatnonzero((table.index_qk >= 0).any(axis=1))
    target = target.subset(part_q)
    index_qk, distance_qk = table.index_qk[part_q], table.distance_qk[part_q]
  if m is None:
    of = f'the {k} nearest that were found' if k else 'all that were found'
    target_n, rank_n = np.nonzero(index_qk[:, : k or None] >= 0)
    source_n = index_qk[target_n, rank_n]
  else:
    of, budget_q = _budget(c, workdir, m, target)
    _, drawn = rules.again(c, workdir, target, pool, index_qk, budget_q)
    if rule.shared:
      source_n = rules.selected(drawn)
      target_n = rank_n = np.full(len(source_n), -1)
    else:
      target_n, source_n, rank_n = _paired(drawn, index_qk)
  distance_n = np.full(len(rank_n), np.nan)
  (known,) = np.nonzero(rank_n >= 0)
  if len(known):
    distance_n[known] = distance_qk[target_n[known], rank_n[known]]
  return Selection(
    target=target,
    pool=pool,
    of=of,
    target_n=target_n,
    source_n=source_n,
    rank_n=rank_n.astype(np.int32),
    distance_n=distance_n,
    index=np.unique(source_n),
  )


def _settings(workdir):
  """The settings of a run that has what it selects by."""
  config = workdir / 'config.json'
  if not (config.exists() and (workdir / 'data.json').exists()):
    raise UserError(
      f'{workdir} is not the directory of a run; of a comparison, give one of '
      'its runs/<arm>-<seed>.'
    )
  c = workdirs.settings_of(workdir)
  if c.selection == 'none':
    raise UserError(
      f'The run in {workdir} borrows nothing (selection=none), so there is no '
      'selection. Give another run.'
    )
  rule = rules.RULES[c.selection]
  ready = (workdir / 'results.json').exists() or _finished(workdir)
  if rule.mark:
    ready = (workdir / 'selection' / rule.mark).exists()
  if not ready:
    raise UserError(
      f'The run in {workdir} has not found yet what it selects from. Let it '
      'run on.'
    )
  if rule.searched == 'descriptors':
    certificate.read(workdir / 'selection')
  return c


def _finished(workdir) -> int:
  """How many rounds are finished."""
  m = 0
  while round_files.finished(round_files.directory(workdir, m)):
    m += 1
  return m


def _round(c, workdir, k, of_round) -> int | None:
  """The round that is asked for; None for what the search found."""
  finished = _finished(workdir)
  if k is None and of_round is None:
    narrowed = c.budget.images or c.budget.least_per_class > 1
    if not finished and c.selection in _BY_RANK and not narrowed:
      return None
    of_round = max(finished - 1, 0)
  if of_round is None:
    if not rules.RULES[c.selection].searched:
      raise UserError(
        f'--k asks for what a search found, and selection={c.selection} has '
        'none: leave --k out.'
      )
    return None
  m = finished - 1 if of_round == 'last' else of_round
  # K is known before round 0, too.
  if m != 0 and not 0 <= m < finished:
    there = 'is 0, what budget.initial selects, until a round has finished'
    if finished:
      there = f'is one that has finished, 0 to {finished - 1}, or last'
    raise UserError(f'--round {there}; {of_round} came.')
  return m


def _budget(c, workdir, m, target):
  """(What is selected at a round's K, in words; that K, int [q])."""
  directory = round_files.directory(workdir, m)
  if round_files.finished(directory):
    budget_q, _, _ = round_files.budget(directory, target)
    return f'what round {m} trained on', budget_q
  k = c.budget.initial
  return f'what budget.initial={k} selects', np.full(len(target), k)


def _opened(c, workdir):
  """The target training images, and what the guard left of the source."""
  data = files.read_json(workdir / 'data.json')
  train, test = datasets.open_target(c.target, c.seed, testing=False)
  pool = datasets.open_pool(c.source)
  for name, digest in (
    ('target', train.digest + test.digest),
    ('source', pool.digest),
  ):
    if data[name]['digest'] != digest:
      raise UserError(
        f'The {name} images are not the ones that the run in {workdir} began '
        'with. Restore them.'
      )
  return train, guard.remaining(pool, workdir)


def _paired(drawn, index_qk):
  """Candidates as pairs: positions of both sides and ranks, int64 [n] each.

  Args:
    drawn: `Candidates`.
    index_qk: of the search, int64 [q, k].
  """
  length_q = drawn.stop - drawn.start
  begin_q = np.cumsum(length_q) - length_q
  target_n = np.repeat(np.arange(len(length_q)), length_q)
  at_n = np.arange(len(target_n)) + np.repeat(drawn.start - begin_q, length_q)
  source_n, rank_n = drawn.index[at_n], np.full(len(at_n), -1)
  for row_k, begin, length in zip(index_qk, begin_q, length_q, strict=True):
    mine, order = slice(begin, begin + length), np.argsort(row_k)
    place = np.searchsorted(row_k, source_n[mine], sorter=order)
    rank = order[np.minimum(place, len(row_k) - 1)]
    rank_n[mine] = np.where(row_k[rank] == source_n[mine], rank, -1)
  return target_n, source_n, rank_n


def samples(selection: Selection) -> Iterator[tuple[int, bytes, list[dict]]]:
  """Every image selected, with its pairs.

  Yields:
    (position in the pool; bytes of the file; its pairs by target image, each
    with target_id, target_label, target_class, rank and distance, the last two
    None of a pair that the search does not have). Where all target images have
    the same source images there are no pairs.
  """
  target = selection.target
  order = np.argsort(selection.source_n, kind='stable')
  stops = np.searchsorted(
    selection.source_n[order], selection.index, side='right'
  )
  start = 0
  for (i, data), stop in zip(images(selection), stops, strict=True):
    mine, start = order[start:stop], stop
    yield (
      i,
      data,
      [
        {
          'target_id': str(target.ids[t]),
          'target_label': int(target.labels[t]),
          'target_class': target.classes[target.labels[t]],
          'rank': rank if rank >= 0 else None,
          'distance': distance if rank >= 0 else None,
        }
        for t, rank, distance in zip(
          selection.target_n[mine].tolist(),
          selection.rank_n[mine].tolist(),
          selection.distance_n[mine].tolist(),
          strict=True,
        )
        if t >= 0
      ],
    )


def images(selection: Selection) -> Iterator[tuple[int, bytes]]:
  """(position in the pool, bytes of the file) of every image selected."""
  with progress.bar(len(selection.index), 'export') as bar:
    for i in selection.index.tolist():
      try:
        yield i, selection.pool.read(i)
      except OSError as error:
        raise UserError(
          f'{selection.pool.ids[i]} was selected, and cannot be read now '
          f'({error}). Restore it.'
        ) from error
      bar.update()
