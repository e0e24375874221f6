"""A selection as files of other programs: a writer for each format."""

import io
import itertools
import json
import pathlib
import re
import tarfile
from collections.abc import Callable

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq

from sjft_jax import files, selected
from sjft_jax.errors import UserError
from sjft_jax.selected import Selection

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


def to_csv(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the pairs as csv; distances with all their digits."""
  _write_pairs(selection, out, pyarrow.csv.CSVWriter)


def to_parquet(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the pairs as one parquet file."""
  _write_pairs(selection, out, pq.ParquetWriter)


def _write_pairs(selection, out, writer):
  with (
    files.replacing(out) as file,
    writer(file, selected.SCHEMA) as written,
  ):
    for part in selection.pairs():
      written.write_table(part)


def to_folder(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes the images by class, images.csv and pairs.csv."""
  with files.building(out, 'pairs.csv') as beside:
    beside.mkdir()
    header = 'path', 'source_id', 'label', 'class'
    rows = _write_images(selection, beside)
    files.write_csv(beside / 'images.csv', header, rows)
    to_csv(selection, beside / 'pairs.csv')


def _write_images(selection, directory):
  """Writes every image when its row of images.csv is asked for."""
  pool, used = selection.pool, {}
  folders = _distinct(map(_safe, pool.classes))
  for i, data in selected.images(selection):
    label = pool.labels[i]
    stem = _safe(re.sub(r'\.\w+$', '', pool.ids[i].rpartition('/')[2]))
    suffix = _suffix(data, pool.ids[i])
    name = _free(f'{folders[label]}/{stem}', suffix, used)
    path = directory / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    yield f'images/{name}', pool.ids[i], label, pool.classes[label]


def to_tar(selection: Selection, out: pathlib.PurePath) -> None:
  """Writes WebDataset shards of at most SHARD images into a directory."""
  pool = selection.pool
  names = [
    f'{shard:06d}.tar' for shard in range(-(-len(selection.index) // SHARD))
  ]
  with files.building(out, names[-1]) as beside:
    beside.mkdir()
    samples = selected.samples(selection)
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
          _add(tar, f'{name}{_suffix(data, pool.ids[i])}', data)
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

  pool, target_classes = selection.pool, selection.target.classes
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

  def examples():
    for i, data, pairs in selected.samples(selection):
      _suffix(data, pool.ids[i])  # TFDS would take any bytes.
      yield {
        'image': data,
        'label': pool.labels[i],
        'file_name': str(pool.ids[i]),
        'pairs': [
          {
            'target_id': row['target_id'],
            'target_label': row['target_label'],
            'rank': -1 if row['rank'] is None else row['rank'],
            'distance': np.nan if row['rank'] is None else row['distance'],
          }
          for row in pairs
        ],
      }

  with files.building(out, 'dataset_info.json') as beside:
    beside.mkdir()
    info = recorded.write_split(
      beside, 'selection', 'train', features, examples(), len(selection.index)
    )
    recorded.write_metadata(
      beside,
      features,
      [info],
      version='1.0.0',
      description=f'Source images selected by sjft_jax ({selection.of}), each '
      'with its pairs: the target images that draw it, its rank among their '
      'neighbours (0 = nearest) and the distance in nats (by features, without '
      'unit); -1 and NaN where it is none of those that were found. Without '
      'pairs every target image draws it.',
      supervised_keys=('image', 'label'),
    )


FORMATS: dict[str, Callable[[Selection, pathlib.PurePath], None]] = {
  'folder': to_folder,
  'csv': to_csv,
  'parquet': to_parquet,
  'tar': to_tar,
  'tfds': to_tfds,
}


def _safe(name) -> str:
  """A name that is one part of a path, on any system."""
  text = re.sub(r'[^\w.+ -]', '_', str(name)).strip('. ')
  # A name has 255 bytes at most, and may be given a number.
  return text.encode()[:200].decode(errors='ignore').strip('. ') or '_'


def _distinct(names) -> list[str]:
  used = {}
  return [_free(name, '', used) for name in names]


def _free(name, suffix, used) -> str:
  """The name, or name~2, name~3, ... where it is taken; now it is.

  `used` holds the names that are taken, each with the number that comes next.
  """
  # Some file systems do not tell upper and lower case apart.
  wanted = (name + suffix).lower()
  found, n = name + suffix, used.get(wanted, 2)
  while found.lower() in used:
    found = f'{name}~{n}{suffix}'
    n += 1
  used[wanted] = n
  used.setdefault(found.lower(), 2)
  return found


def _suffix(data, name) -> str:
  """What the file of an image ends with, by its first bytes.

  Raises:
    UserError: if it is no image (it was one when the run looked at it, and has
      kept its size, which is all that is compared).
  """
  for suffix, pattern in _SUFFIXES:
    if re.match(pattern, data, re.DOTALL):
      return suffix
  raise UserError(
    f'{name} was selected, and is not an image any more. Restore it.'
  )


def _add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))
