"""What a finished run selected: its pairs, and the images themselves."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sjft_jax import certificate, files, paths, progress, tables, workdirs
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

_PAIRS = 2**20  # of a part: the names of all would take gigabytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
  """What a run selected; the n pairs by target image and rank.

  Attributes:
    target: the target training images.
    pool: the source.
    target_n: positions of the pairs' target images, int64 [n].
    source_n: positions of their source images in the pool, int64 [n].
    rank_n: int32 [n], 0 = nearest.
    distance_n: nats, float64 [n].
    index: positions in the pool of the images selected, int64 [m], ascending.
  """

  target: Dataset
  pool: Dataset
  target_n: np.ndarray
  source_n: np.ndarray
  rank_n: np.ndarray
  distance_n: np.ndarray
  index: np.ndarray

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
        label = pa.array(dataset.labels[place_n[part]])
        columns |= {
          f'{side}_id': ids.take(pa.array(place_n[part])),
          f'{side}_label': label,
          f'{side}_class': classes.take(label),
        }
      columns |= {'rank': self.rank_n[part], 'distance': self.distance_n[part]}
      yield pa.table(columns, SCHEMA)


def load(workdir, k: int = 0) -> Selection:
  """The selection that a run has made.

  Args:
    workdir: directory of the run.
    k: take the k nearest of every target image only; 0 = all that were found.

  Returns:
    The pairs, and where the images are.

  Raises:
    UserError: if there is no selection, it is not as the search wrote it, or
      its images have changed.
  """
  workdir = paths.path(workdir)
  path = workdir / 'selection' / 'neighbours.parquet'
  if not (path.parent / certificate.NAME).exists():
    raise UserError(
      'Needed a finished search by descriptors (selection=neighbours, '
      f'labelled, classes or random); {path} is not there or not certified. '
      'Of a comparison, give one of its runs/<arm>-<seed>.'
    )
  certificate.read(path.parent)
  settings = workdirs.settings_of(workdir)
  data = files.read_json(workdir / 'data.json')
  train, test = datasets.open_target(
    settings.target, settings.seed, testing=False
  )
  pool = datasets.open_pool(settings.source)
  for name, digest in (
    ('target', train.digest + test.digest),
    ('source', pool.digest),
  ):
    if data[name]['digest'] != digest:
      raise UserError(
        f'The {name} images are not the ones that the run in {workdir} began '
        'with. Restore them.'
      )
  table = tables.read(path, train.ids, pool.ids)
  target_n, rank_n = np.nonzero(table.index_qk[:, : k or None] >= 0)
  source_n = table.index_qk[target_n, rank_n]
  return Selection(
    target=train,
    pool=pool,
    target_n=target_n,
    source_n=source_n,
    rank_n=rank_n.astype(np.int32),
    distance_n=table.distance_qk[target_n, rank_n],
    index=np.unique(source_n),
  )


def samples(selection: Selection) -> Iterator[tuple[int, bytes, list[dict]]]:
  """Every image selected, with its pairs.

  Yields:
    (position in the pool; bytes of the file; its pairs by target image, each
    with target_id, target_label, target_class, rank and distance in nats).
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
          'rank': rank,
          'distance': distance,
        }
        for t, rank, distance in zip(
          selection.target_n[mine].tolist(),
          selection.rank_n[mine].tolist(),
          selection.distance_n[mine].tolist(),
          strict=True,
        )
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
