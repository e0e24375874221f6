"""A selection for other programs: python -m sjft_jax.export --workdir=DIR OUT.

--to=csv or parquet: one row for every pair of a target image and one of its
neighbours, with ids, classes, labels, rank and distance. --to=folder: also the
selected source images, in a directory per class, and images.csv, which tells
the id of each. --to=tar: the same as WebDataset shards; each sample holds the
image, its label (cls) and a json with its id, its class and all its pairs.
--to=tfds: the same as a data set for tfds.builder_from_directory, which reads
it as_data_source, without TensorFlow.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import json
import pathlib
import re
import sys
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from sjft_jax import files, main, paths, progress
from sjft_jax.data import datasets, preprocess
from sjft_jax.errors import UserError

SHARD = 10_000  # images
# By the first bytes: an id need not end like a file name.
_SUFFIXES = (
  ('.jpg', rb'\xff\xd8'),
  ('.png', rb'\x89PNG'),
  ('.gif', rb'GIF8'),
  ('.webp', rb'RIFF....WEBP'),
  ('.bmp', rb'BM'),
  ('.tif', rb'II\*\x00|MM\x00\*'),
  ('.ppm', rb'P[2356]\s'),
)


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
      f'Needed the directory of a run that has searched; {path} is not there '
      'or not finished. Of a comparison, give one of its runs/<arm>-<seed>.'
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


def to_csv(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the pairs as csv; distances with all their digits."""
  with files.replacing(out) as file:
    pyarrow.csv.write_csv(selection.pairs, file)


def to_parquet(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the pairs as one parquet file."""
  with files.replacing(out) as file:
    pq.write_table(selection.pairs, file)


def to_folder(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the images by class, images.csv and pairs.csv."""
  pool, used = selection.pool, set()
  with files.building(out, 'pairs.csv') as beside:
    beside.mkdir()
    folders = _distinct(map(_safe, pool.classes))
    with files.replacing(beside / 'images.csv', 'w') as file:
      writer = csv.writer(file)
      writer.writerow(('path', 'source_id', 'label', 'class'))
      for i, data in _images(selection):
        label = pool.labels[i]
        stem = _safe(re.sub(r'\.\w+$', '', pool.ids[i].rpartition('/')[2]))
        name = _free(f'{folders[label]}/{stem}', _suffix(data), used)
        path = beside / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        row = f'images/{name}', pool.ids[i], label, pool.classes[label]
        writer.writerow(row)
    to_csv(selection, beside / 'pairs.csv')


def to_tar(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes WebDataset shards of at most SHARD images into a directory."""
  pool = selection.pool
  names = [
    f'{shard:06d}.tar' for shard in range(-(-len(selection.index) // SHARD))
  ]
  with files.building(out, names[-1]) as beside:
    beside.mkdir()
    samples = _samples(selection)
    for shard, tar_name in enumerate(names):
      with tarfile.open(beside / tar_name, 'w') as tar:
        for n, (i, data, pairs) in enumerate(itertools.islice(samples, SHARD)):
          label = int(pool.labels[i])
          description = {
            'source_id': str(pool.ids[i]),
            'source_label': label,
            'source_class': pool.classes[label],
            'pairs': pairs,
          }
          text = json.dumps(description, ensure_ascii=False).encode()
          name = f'{shard * SHARD + n:09d}'
          _add(tar, f'{name}{_suffix(data)}', data)
          _add(tar, f'{name}.cls', str(label).encode())
          _add(tar, f'{name}.json', text)


def to_tfds(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes a directory for `tfds.builder_from_directory(...).as_data_source`.

  Raises:
    UserError: if a class has a name that TFDS cannot keep.
  """
  # Takes half a second, and the other formats do without.
  import tensorflow_datasets as tfds

  from sjft_jax.data import recorded

  pool, target_classes = selection.pool, selection.target_classes
  for name in (*pool.classes, *target_classes):
    # TFDS keeps them as lines of a file.
    if name != name.strip() or len(name.splitlines()) != 1:
      raise UserError(
        f'--to=tfds needs class names of one line; {name!r} is none, or begins '
        'or ends with a space: choose another format.'
      )
  pair = {
    'target_id': tfds.features.Text(),
    'target_label': tfds.features.ClassLabel(names=target_classes),
    'rank': np.int64,
    # A float of the records themselves has half of the digits.
    'distance': tfds.features.Tensor(
      shape=(), dtype=np.float64, encoding='bytes'
    ),
  }
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=pool.classes),
      'file_name': tfds.features.Text(),
      'pairs': tfds.features.Sequence(pair),
    }
  )
  examples = (
    {
      'image': data,
      'label': pool.labels[i],
      'file_name': str(pool.ids[i]),
      'pairs': [{name: row[name] for name in pair} for row in pairs],
    }
    for i, data, pairs in _samples(selection)
  )
  with files.building(out, 'dataset_info.json') as beside:
    beside.mkdir()
    info = recorded.write_split(
      beside, 'selection', 'train', features, examples, len(selection.index)
    )
    recorded.write_metadata(
      beside,
      features,
      [info],
      version='1.0.0',
      description='Source images selected by sjft_jax, each with its pairs: '
      'the target images that it is a neighbour of, its rank among theirs (0 = '
      'nearest) and the distance in nats.',
      supervised_keys=('image', 'label'),
    )


FORMATS: dict[str, Callable[[Selection, pathlib.PurePath], None]] = {
  'folder': to_folder,
  'csv': to_csv,
  'parquet': to_parquet,
  'tar': to_tar,
  'tfds': to_tfds,
}


def _samples(selection) -> Iterator[tuple[int, bytes, list[dict]]]:
  """(position in the pool, file, its pairs) of every image selected."""
  columns = ('target_id', 'target_label', 'target_class', 'rank', 'distance')
  order = np.argsort(selection.pairs['source_id'].to_numpy(), kind='stable')
  sources = selection.pairs['source_id'].to_numpy()[order]
  pairs = selection.pairs.select(columns)
  for i, data in _images(selection):
    source_id = str(selection.pool.ids[i])
    first = np.searchsorted(sources, source_id, 'left')
    last = np.searchsorted(sources, source_id, 'right')
    yield i, data, pairs.take(np.sort(order[first:last])).to_pylist()


def _images(selection) -> Iterator[tuple[int, bytes]]:
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


def _safe(name) -> str:
  """A name that is one part of a path, on any system."""
  return re.sub(r'[^\w.+ -]', '_', str(name)).strip('. ') or '_'


def _distinct(names) -> list[str]:
  used = set()
  return [_free(name, '', used) for name in names]


def _free(name, suffix, used) -> str:
  """The name, or name~2, name~3, ... where it is taken; now it is."""
  found, n = name + suffix, 1
  # Some file systems do not tell upper and lower case apart.
  while found.lower() in used:
    n += 1
    found = f'{name}~{n}{suffix}'
  used.add(found.lower())
  return found


def _suffix(data) -> str:
  for suffix, pattern in _SUFFIXES:
    if re.match(pattern, data, re.DOTALL):
      return suffix
  raise preprocess.BadImage('not an image')


def _add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def _work(argv):
  parser = argparse.ArgumentParser(
    prog='python -m sjft_jax.export', description=__doc__.splitlines()[0]
  )
  parser.add_argument('--workdir', required=True, help='directory of a run')
  parser.add_argument('--to', required=True, choices=FORMATS)
  parser.add_argument(
    '--k', type=int, default=0, help='neighbours per target image; 0 = all'
  )
  parser.add_argument('out', metavar='OUT', type=paths.path)
  args = parser.parse_args(argv[1:])
  if args.k < 0:
    raise UserError(f'--k is at least 0, not {args.k}.')
  if args.out.exists():
    raise UserError(f'{args.out} exists already. Give another name.')
  selection = load(args.workdir, args.k)
  FORMATS[args.to](selection, args.out)
  print(
    f'{len(selection.pairs)} pairs with {len(selection.index)} source images '
    f'are in {args.out}.'
  )


if __name__ == '__main__':
  sys.exit(main.guarded(_work, sys.argv))
