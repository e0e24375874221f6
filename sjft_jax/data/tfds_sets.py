"""Sets that TFDS prepared as array_record files, read without TensorFlow."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from sjft_jax import errors, files, paths, progress
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
    UserError: if there is no such set or split, it is not one of images with
      labels in array_record files, it is damaged, or cannot be read now.
  """
  # Takes half a second, and the other kinds do without.
  import tensorflow_datasets as tfds

  name, group = spec['name'], setting.rpartition('.')[0]
  data_dir, where = None, 'the default data_dir'
  if spec['dir']:
    on_disk = paths.on_disk(spec['dir'], f'{group}.dir: array_record files')
    data_dir = where = str(on_disk)
  try:
    with whole(name, where):
      builder = tfds.builder(name, data_dir=data_dir)
  # The second is of a version that a registered set does not have.
  except (ValueError, AssertionError) as e:
    raise errors.UserError(
      f'{group}.name needs a TFDS set; {name!r} is neither registered nor'
      f' prepared as a whole in {where}: correct --config.{group}.name or .dir,'
      ' or prepare it again.'
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
  with whole(name, builder.data_dir):
    ids, labels, sizes = _kept(builder, part, key, records)
  if not len(labels) or labels.min() < 0:
    none = 'have none' if len(labels) else 'are none'
    raise errors.UserError(
      f'{setting} needs images with labels; those of {part!r} of {name} {none}:'
      ' take another split.'
    )
  # A set may declare names that no image has, as emnist/letters does.
  used, labels = np.unique(labels, return_inverse=True)
  with whole(name, builder.data_dir):
    classes = [came['label'].names[i] for i in used]
  return bare(
    classes,
    ids,
    labels,
    sizes,
    read=lambda i: _record(records, i)['image'],
    # Positions mean something only within one version and split.
    version=f'{info.full_name} {part}',
    stamp=_files_digest(builder, part, key),
  )


@contextlib.contextmanager
def whole(name: str, where):
  """Says in one line that a prepared set is damaged.

  Args:
    name: of the set.
    where: it lies.

  Raises:
    UserError: if it is, or cannot be read now.
  """
  from google.protobuf import json_format

  try:
    yield
  except BrokenPipeError:
    raise  # What nobody reads of the progress is no fault of the set.
  # The last where the names of the classes are fewer than their numbers.
  except (OSError, json_format.ParseError, IndexError) as e:
    # TFDS hides what a disk says behind an error of its own.
    fault = paths.cause(e)
    if fault and paths.is_transient(fault):
      raise paths.unreadable(f'{name} in {where}', fault) from e
    reason = getattr(e, 'strerror', None) or str(e)
    raise damaged(name, where, ' '.join(reason.split())) from e


def damaged(name: str, where, why: str) -> errors.UserError:
  """What to say of a prepared set that will never be read as a whole."""
  return errors.UserError(
    f'{name} in {where} is damaged or incomplete ({why}): remove it and prepare'
    ' it again.'
  )


def _record(records, i):
  """A record; OSError if it cannot be read now, DamagedError if never."""
  try:
    found = records[i]
  except RuntimeError as e:
    # array_record has no other error; what the disk said stands in its text.
    for number in errno.errorcode:
      if f'() failed: {os.strerror(number)};' in str(e):
        raise OSError(number, str(e)) from e
    raise paths.DamagedError(errno.EIO, f'damaged in its file: {e}') from e
  # So TFDS reads what array_record finds no bytes of.
  if found['image'] is None:
    raise paths.DamagedError(errno.EIO, 'missing in its file')
  return found


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
  with contextlib.suppress(*files.NO_NPZ):
    stored = files.read_npz(path)
    found = tuple(stored[name] for name in names)
    if {len(column) for column in found} == {len(records)}:
      return _keep(digest, found)
  with progress.bar(
    len(records), f'list {builder.info.full_name} {part}'
  ) as bar:
    found = _keep(digest, _listing(records, key, bar))
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


def _listing(records, key, bar):
  """(ids, labels, bytes) of all records, unicode, int64 and int64 [n]."""
  ids, labels, sizes = [], [], []
  for i in range(len(records)):
    record = _record(records, i)
    ids.append(record[key].decode('utf-8', 'backslashreplace') if key else i)
    labels.append(record['label'])
    sizes.append(len(record['image']))
    bar.update()
  if not key or len(set(ids)) < len(ids):
    ids = [f'{i:08d}' for i in range(len(ids))]
  return np.array(ids, np.str_), np.array(labels, int), np.array(sizes, int)
