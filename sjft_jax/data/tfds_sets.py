"""Sets that TFDS prepared as array_record files, read without TensorFlow."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sjft_jax import errors, files, paths
from sjft_jax.data.dataset import Dataset, bare

# The first that a TFDS set has and that is unique names its images.
TFDS_NAMES = ('file_name', 'filename', 'image/file_name', 'image/filename')


def open_split(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  """Opens a split of a prepared set.

  Args:
    spec: name, and dir ('' = TFDS's default data_dir).
    part: the split.
    setting: the name of its setting, for messages.

  Returns:
    A set without a name; ids are file names, or positions where the set has
    none. Classes without images are left out.

  Raises:
    UserError: if there is no such set or split, or it is not one of images with
      labels in array_record files.
  """
  # Takes half a second, and the other kinds do without.
  import tensorflow_datasets as tfds

  name, group = spec['name'], setting.rpartition('.')[0]
  data_dir, where = None, 'the default data_dir'
  if spec['dir']:
    on_disk = paths.on_disk(spec['dir'], f'{group}.dir: array_record files')
    data_dir = where = str(on_disk)
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except ValueError as e:
    raise errors.UserError(
      f'{group}.name needs a TFDS set; {name!r} is neither registered nor'
      f' prepared in {where}: correct --config.{group}.name or .dir.'
    ) from e
  info = builder.info
  if not info.splits:
    raise errors.UserError(
      f'{group} needs {name} prepared as array_record; {where} does not hold'
      f' it: prepare it there, or correct --config.{group}.dir.'
    )
  kinds = {'image': tfds.features.Image, 'label': tfds.features.ClassLabel}
  came = dict(info.features.items())
  if not all(isinstance(came.get(k), kind) for k, kind in kinds.items()):
    has = ', '.join(f'{k} ({type(v).__name__})' for k, v in came.items())
    raise errors.UserError(
      f'{group} needs a TFDS set of images with labels: image (Image) and label'
      f' (ClassLabel); {name} has {has}: choose another set.'
    )
  try:
    records = builder.as_data_source(
      part, decoders={'image': tfds.decode.SkipDecoding()}
    )
  except ValueError as e:
    raise errors.UserError(
      f'{setting} needs a split of {name} ({", ".join(info.splits)});'
      f' {part!r} came: set --config.{setting}.'
    ) from e
  except NotImplementedError as e:
    raise errors.UserError(
      f'{group} needs {name} prepared as array_record; {where} holds it in'
      ' another format: prepare it again with file_format=array_record.'
    ) from e

  key = next((key for key in TFDS_NAMES if key in came), None)
  ids, labels, sizes = _kept(builder, part, key, records)
  if not len(labels) or labels.min() < 0:
    none = 'have none' if len(labels) else 'are none'
    raise errors.UserError(
      f'{setting} needs images with labels; those of {part!r} of {name} {none}:'
      ' take another split.'
    )
  # A set may declare names that no image has, as emnist/letters does.
  used, labels = np.unique(labels, return_inverse=True)
  return bare(
    [came['label'].names[i] for i in used],
    ids,
    labels,
    sizes,
    read=lambda i: records[i]['image'],
    # Positions mean something only within one version and split.
    version=f'{info.full_name} {part}',
    stamp=_files_digest(builder, part, key),
  )


# Names of large sets take gigabytes: these are read from the disk again.
_KEPT_BYTES = 2**26
# (ids, labels, bytes) of what this process has opened, by `_files_digest`.
_opened: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


def _kept(builder, part: str, key: str | None, records):
  """What `_listing` returns, from the user's cache if it is there.

  To list them, all images are read: of a large set it takes minutes.
  """
  digest = _files_digest(builder, part, key)
  if digest in _opened:
    return _opened[digest]
  path = paths.cache() / 'tfds' / f'{digest}.npz'
  names = ('ids', 'labels', 'sizes')
  # A cache that is damaged or cannot be written to is none.
  with contextlib.suppress(
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
  ):
    stored = files.read_npz(path)
    found = tuple(stored[name] for name in names)
    if {len(column) for column in found} == {len(records)}:
      return _keep(digest, found)
  found = _keep(digest, _listing(records, key))
  with contextlib.suppress(OSError), files.replacing(path, shared=True) as file:
    np.savez_compressed(file, **dict(zip(names, found, strict=True)))
  return found


def _keep(digest, found):
  if found[0].nbytes < _KEPT_BYTES:
    _opened[digest] = found
  return found


def _files_digest(builder, part, key) -> str:
  """Tells a part of a prepared set from every other, by its files."""
  with os.scandir(builder.data_dir) as entries:
    stats = sorted((e.name, e.stat()) for e in entries)
  shards = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
  text = json.dumps([1, builder.info.full_name, part, key, shards])
  return hashlib.sha256(text.encode()).hexdigest()


def _listing(records, key):
  """(ids, labels, bytes) of all records, unicode, int64 and int64 [n]."""
  ids, labels, sizes = [], [], []
  for i, record in enumerate(records):
    ids.append(record[key].decode('utf-8', 'backslashreplace') if key else i)
    labels.append(record['label'])
    sizes.append(len(record['image']))
  if not key or len(set(ids)) < len(ids):
    ids = [f'{i:08d}' for i in range(len(ids))]
  return np.array(ids, np.str_), np.array(labels, int), np.array(sizes, int)
