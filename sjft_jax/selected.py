"""What a finished run selected: its pairs, and the images themselves."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from sjft_jax import files, paths, progress
from sjft_jax.data import datasets
from sjft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
  """What a run selected.

  Attributes:
    pairs: columns target_id, target_label, target_class, source_id,
      source_label, source_class, rank (0 = nearest) and distance (nats), by
      target image and rank.
    pool: the source.
    index: positions in it of the images selected, int64 [n], ascending.
    target_classes: class names of the target, by label.
  """

  pairs: pa.Table
  pool: datasets.Dataset
  index: np.ndarray
  target_classes: tuple[str, ...]


def load(workdir, k: int = 0) -> Selection:
  """The selection that a run has made.

  Args:
    workdir: directory of the run.
    k: take the k nearest of every target image only; 0 = all that were found.

  Returns:
    The pairs, and where the images are.

  Raises:
    UserError: if there is no selection, or its images have changed.
  """
  workdir = paths.path(workdir)
  path = workdir / 'selection' / 'neighbours.parquet'
  if not (workdir / 'selection' / 'certificate.json').exists():
    raise UserError(
      'Needed a finished search by descriptors (selection=neighbours, '
      f'labelled, classes or random); {path} is not there or not certified. '
      'Of a comparison, give one of its runs/<arm>-<seed>.'
    )
  settings = ConfigDict(files.read_json(workdir / 'config.json')['settings'])
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
  with files.opened(path) as file:
    pairs = pq.read_table(file)
  if k:
    pairs = pairs.filter(pc.less(pairs['rank'], k))
  columns = {}
  for side, dataset in (('target', train), ('source', pool)):
    ids = pairs[f'{side}_id'].cast(pa.string())
    place = pc.index_in(ids, value_set=pa.array(dataset.ids)).to_numpy()
    label = dataset.labels[place]
    columns |= {
      f'{side}_id': ids,
      f'{side}_label': label,
      f'{side}_class': np.array(dataset.classes)[label],
    }
  columns |= {name: pairs[name] for name in ('rank', 'distance')}
  return Selection(
    pairs=pa.table(columns),
    pool=pool,
    index=np.unique(place).astype(int),
    target_classes=train.classes,
  )


def samples(selection: Selection) -> Iterator[tuple[int, bytes, list[dict]]]:
  """(position in the pool, file, its pairs) of every image selected."""
  columns = ('target_id', 'target_label', 'target_class', 'rank', 'distance')
  order = np.argsort(selection.pairs['source_id'].to_numpy(), kind='stable')
  sources = selection.pairs['source_id'].to_numpy()[order]
  pairs = selection.pairs.select(columns)
  for i, data in images(selection):
    source_id = str(selection.pool.ids[i])
    first = np.searchsorted(sources, source_id, 'left')
    last = np.searchsorted(sources, source_id, 'right')
    yield i, data, pairs.take(np.sort(order[first:last])).to_pylist()


def images(selection: Selection) -> Iterator[tuple[int, bytes]]:
  """(position in the pool, file) of every image selected."""
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
