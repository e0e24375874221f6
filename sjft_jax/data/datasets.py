"""Image sets as random access: encoded bytes, a label and a stable id each.

A set is described by a plain mapping: `kind` folder, packaged or tfds, and the
fields in FIELDS. A folder may also lie in a zip or tar archive, or be listed in
a csv file, and all of these on a disk or in a store. The target has a `train`
and a `test` part; the source pool is any number of named sets whose classes are
laid side by side.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sjft_jax import errors, files, paths
from sjft_jax.data import packaged, packs

FIELDS = {
  'kind': 'folder',
  'name': '',  # packaged, tfds: which set
  'dir': '',  # folder: a source's directory, archive or csv; tfds: data_dir
  'train': '',  # target: a directory, archive or csv (folder), or a split
  'test': '',  # target: likewise; '' = what per_class or held_out leaves
  'split': '',  # source: a split (packaged, tfds)
  'per_class': 0,  # target: training images drawn of each class; 0 = all
  'held_out': 0.0,  # target: share of each class that is drawn for test
  'folds': 0,  # target: parts of the training images, one of which is the test
  'fold': 0,  # target: which one
  'use': True,  # source: False leaves it out
  'quota': 0,  # source: images drawn, as evenly over the classes as they allow
}
SUFFIXES = ('.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pgm', '.png',
            '.ppm', '.tif', '.tiff', '.webp')  # fmt: skip
# Links of such names that lead nowhere were no classes.
_NO_CLASSES = ('.csv', '.gz', '.html', '.json', '.md', '.pdf', '.py', '.tar',
               '.tsv', '.txt', '.xml', '.yaml', '.yml', '.zip')  # fmt: skip
# Questions to a disk that wait for their answers at once, and for how many
# files that is worth it.
_ASKING, _MANY = 32, 1024
# The first that a TFDS set has and that is unique names its images.
TFDS_NAMES = ('file_name', 'filename', 'image/file_name', 'image/filename')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
  """Images by position.

  Attributes:
    name: 'target', the source's name, or 'pool'.
    classes: class names by label; in a pool '<source>:<class>'.
    ids: unicode [n], '<name>:<stable id>', unique.
    labels: int32 [n].
    sizes: encoded bytes of each image, int64 [n]; -1 where unreadable.
    read: position -> encoded bytes; safe in threads; may raise OSError.
    version: of a set that states one.
    sources: a pool's source names, else ().
    source: a pool's index into `sources`, int32 [n], else None.
    whole: the set that images were withheld from, else None.
    place: positions in it, int64 [n], ascending, else None.
  """

  name: str
  classes: tuple[str, ...]
  ids: np.ndarray
  labels: np.ndarray
  sizes: np.ndarray
  read: Callable[[int], bytes]
  version: str = ''
  sources: tuple[str, ...] = ()
  source: np.ndarray | None = None
  whole: 'Dataset | None' = None
  place: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 over version, classes, ids, labels and sizes, in hex."""
    sha = hashlib.sha256(json.dumps([self.version, self.classes]).encode())
    sha.update('\0'.join(self.ids.tolist()).encode())
    sha.update(self.labels.astype('<i4').tobytes())
    sha.update(self.sizes.astype('<i8').tobytes())
    return sha.hexdigest()

  def subset(self, index: np.ndarray) -> 'Dataset':
    """The images at these positions, int [m], in this order; same classes."""
    index = np.asarray(index)
    read = self.read
    return dataclasses.replace(
      self,
      ids=self.ids[index],
      labels=self.labels[index],
      sizes=self.sizes[index],
      source=None if self.source is None else self.source[index],
      read=lambda i: read(int(index[i])),
      whole=None,
      place=None,
    )

  def without(self, ids) -> 'Dataset':
    """The images but those named; it remembers the whole set.

    What is made of every image by itself is then the same for all that is
    withheld, and need not be made again.

    Args:
      ids: of images; none = the set itself.
    """
    kept = np.flatnonzero(~np.isin(self.ids, list(ids)))
    if len(kept) == len(self):
      return self
    return dataclasses.replace(self.subset(kept), whole=self, place=kept)


def _dataset(classes, ids, labels, sizes, read, version='') -> Dataset:
  return Dataset(
    name='',
    classes=tuple(classes),
    ids=np.array(ids, np.str_),
    labels=np.asarray(labels, np.int32),
    sizes=np.asarray(sizes, np.int64),
    read=read,
    version=version,
  )


# Names of folders that hold classes, not images.
_PARTS = {'train', 'training', 'test', 'testing', 'val', 'valid', 'validation'}


# --- Openers: (spec, part, setting) -> Dataset with bare ids ------------------
# `part` is the directory or split to open, `setting` the name of its setting.


def _folder(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  del spec
  need = f'{setting} needs a folder that holds one folder of images per class'
  if not part:
    raise errors.UserError(f'{need}; none was given: --config.{setting}=DIR.')
  root = paths.path(part)
  if root.name.lower().endswith('.csv') and root.is_file():
    return _listed(root, setting)
  if found := packs.split(root):
    return _packed(*found, setting)
  if not root.is_dir():
    what = 'is not a folder' if root.exists() else 'does not exist'
    raise errors.UserError(f'{need}; {part} {what}: correct the path.')
  folders, loose, rows = (_stored if paths.in_store(root) else _walked)(root)
  if loose:
    raise errors.UserError(
      f'{need}; images lie directly in {part} ({legible(loose[0])}, in all'
      f' {len(loose)}): move them into class folders.'
    )
  if not folders:
    raise errors.UserError(
      f'{need}; {part} holds no folder: make one per class, named after it.'
    )
  depth = min((name.count(os.sep) for _, name, _ in rows), default=0)
  if len(folders) == 1 and depth > 1 and setting != 'target.test':
    # As in an archive: what all images have in common is no class. (Of a test
    # set it may be one.)
    return _folder({}, f'{part.rstrip("/")}/{folders[0]}', setting)
  _refuse_parts(folders, part, setting)
  names = [name for _, name, _ in rows]
  inside = [name.replace(os.sep, '/') for name in names]
  _refuse_stray(inside, part, setting)
  read = paths.reader(root)
  return _dataset(
    classes=map(legible, folders),
    ids=list(map(legible, inside)),
    labels=[label for label, _, _ in rows],
    sizes=[size for _, _, size in rows],
    read=lambda i: read(names[i]),
  )


def _refuse_parts(folders, part, setting):
  """Or a whole set would be taken for two classes, and nobody would notice."""
  if not _PARTS.issuperset(map(str.lower, folders)):
    return
  likely = min(folders, key=lambda name: not name.lower().startswith('train'))
  raise errors.UserError(
    f'{setting} needs a folder that holds one folder of images per class; what '
    f'{part} holds are the parts of a set, {", ".join(folders)}: give one of '
    f'them, as {part}/{likely}.'
  )


def _refuse_stray(names, part, setting):
  """Or all classes around which a folder lies would be one, unnoticed.

  Args:
    names: of all images, with slashes.
    part: the folder that they are in.
    setting: its setting. A test set may be of one class.
  """
  if setting == 'target.test' or len({n.partition('/')[0] for n in names}) > 1:
    return
  stray = [name for name in names if name.count('/') == 1]
  inner = {name.rpartition('/')[0] for name in names if name.count('/') > 1}
  if stray and len(inner) > 1:
    raise errors.UserError(
      f'{setting} needs a folder that holds one folder of images per class; in '
      f'{part}, {legible(stray[0])} lies beside such folders'
      f' (in all {len(stray)}): move it into one, or away.'
    )


def _walked(root):
  """(class folders, images in none, (label, name, bytes)s) of a disk."""
  folders, loose = [], []
  with os.scandir(root) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      if _is_folder(entry):
        folders.append(entry.name)
      elif _is_image(entry.name):
        loose.append(entry.name)
      elif (
        not entry.name.lower().endswith(_NO_CLASSES)
        and entry.is_symlink()
        and _size(entry.path) < 0
      ):
        raise errors.UserError(
          f'{legible(entry.path)} is a link that leads nowhere; where it led '
          'there may have been a class: mend the link, or remove it.'
        )
  folders.sort()
  loose.sort()
  rows = [
    (label, path)
    for label, folder in enumerate(folders if not loose else ())
    for path in sorted(image_files(os.path.join(root, folder)))
  ]
  sizes = _sizes([path for _, path in rows])
  rows = [
    (label, os.path.relpath(path, root), size)
    for (label, path), size in zip(rows, sizes, strict=True)
  ]
  return folders, loose, rows


def _stored(root):
  """What `_walked` returns, of a store: one listing, no question per image."""
  seen = [row for row in paths.below(root) if not _hidden(row[0])]
  folders = sorted({name.partition('/')[0] for name, _ in seen if '/' in name})
  loose = [name for name, _ in seen if '/' not in name and _is_image(name)]
  label_of = {name: label for label, name in enumerate(folders)}
  rows = [
    (label_of[name.partition('/')[0]], name, size)
    for name, size in seen
    if '/' in name and _is_image(name.rpartition('/')[2])
  ]
  return folders, loose, sorted(rows)


def _packed(path, inside: str, setting: str) -> Dataset:
  """A folder inside an archive; what all its images have in common is left."""
  pack = packs.load(path, setting)
  prefix = f'{inside}/' if inside else ''
  found = [
    (name.removeprefix('./'), i)
    for i, name in enumerate(pack.names)
    if _is_image(name.rpartition('/')[2])
  ]
  found = [
    (name.removeprefix(prefix), i)
    for name, i in found
    if name.startswith(prefix) and not _hidden(name)
  ]
  around = [str(path), inside]
  while (
    len({name.partition('/')[0] for name, _ in found}) == 1
    and min(name.count('/') for name, _ in found) > 1
  ):
    around.append(found[0][0].partition('/')[0])
    found = [(name.partition('/')[2], i) for name, i in found]
  loose = [name for name, _ in found if '/' not in name]
  if loose or not found:
    what = f'{len(loose)} images lie beside' if loose else 'no image lies in'
    raise errors.UserError(
      f'{setting} needs an archive that holds one folder of images per class;'
      f' in {path}/{inside} {what} such folders: give'
      ' ARCHIVE/FOLDER, or pack it again.'
    )
  classes = sorted({name.partition('/')[0] for name, _ in found})
  around = '/'.join(filter(None, around))
  _refuse_parts(classes, around, setting)
  _refuse_stray(sorted(name for name, _ in found), around, setting)
  label_of = {name: label for label, name in enumerate(classes)}
  found.sort(key=lambda row: (label_of[row[0].partition('/')[0]], row[0]))
  place = [i for _, i in found]
  return _dataset(
    classes=map(legible, classes),
    ids=[legible(name) for name, _ in found],
    labels=[label_of[name.partition('/')[0]] for name, _ in found],
    sizes=[pack.sizes[i] for i in place],
    read=lambda i: pack.read(place[i]),
  )


def _hidden(name: str) -> bool:
  return any(part.startswith('.') for part in name.split('/'))


def _listed(path, setting: str) -> Dataset:
  """The images of a csv of path and label; paths are relative to the csv."""
  need = f'{setting} needs a csv with the columns path and label'
  try:
    with files.opened_text(path, 'utf-8-sig') as file:
      reader = csv.DictReader(file, strict=True)
      if not {'path', 'label'} <= set(reader.fieldnames or ()):
        came = ', '.join(reader.fieldnames or ('nothing',))
        raise errors.UserError(f'{need}; {path} has {came}: add them.')
      rows = [(reader.line_num, row['path'], row['label']) for row in reader]
  except (csv.Error, UnicodeError) as e:
    raise errors.UserError(f'{need}; {path} is none ({e}): repair it.') from e
  # Not where a link to the csv leads: a cache of downloads, or git-annex, keeps
  # every file elsewhere, by a name of its own.
  root = path.parent if paths.in_store(path) else path.absolute().parent
  if not paths.in_store(path) and path.is_symlink():
    # Unless the images lie there, and not here.
    there = path.resolve().parent
    some = [name for _, name, _ in rows[:9] if name]
    here = any((root / name).exists() for name in some)
    if not here and any((there / name).exists() for name in some):
      root = there
  base = str(root).partition('://')[2] or os.path.normpath(root)
  inside, seen = os.path.join(base, ''), {}
  for line, name, label in rows:
    # Two spellings of a path would be one image twice.
    whole = os.path.normpath(os.path.join(base, name or ''))
    fault = ''
    if not name or not label:
      fault = 'lacks a path or a label'
    elif os.path.isabs(name):
      fault = (
        f'names {legible(name)}, an absolute path, where paths are relative to'
        ' the folder of the csv'
      )
    elif not whole.startswith(inside):
      fault = f'leads out of its folder ({legible(name)})'
    elif whole in seen:
      fault = f'names {legible(name)} a second time, after line {seen[whole]}'
    if fault:
      raise errors.UserError(f'{need}; line {line} of {path} {fault}: mend it.')
    seen[whole] = line
  if not rows:
    raise errors.UserError(f'{need}; {path} lists no image: add some.')
  classes = sorted({label for *_, label in rows})
  label_of = {name: label for label, name in enumerate(classes)}
  # A store takes a key as it is written, `./` and all; on a disk, `x/..` leads
  # elsewhere if x is a link.
  names = [whole.removeprefix(inside) for whole in seen]
  if paths.in_store(root):
    there = dict(paths.below(root))
    sizes = [there.get(name, -1) for name in names]
  else:
    sizes = _sizes([os.path.join(root, name) for name in names])
  read = paths.reader(root)
  return _dataset(
    classes=classes,
    ids=[name.replace(os.sep, '/') for _, name, _ in rows],
    labels=[label_of[label] for *_, label in rows],
    sizes=sizes,
    read=lambda i: read(names[i]),
  )


def image_files(root: str) -> Iterator[str]:
  """Image files below a folder; links are followed, hidden names are not.

  Raises:
    UserError: if a folder cannot be opened.
  """
  top, seen, left = os.path.join(os.path.realpath(root), ''), set(), [root]
  while left:
    folder = left.pop()
    real = os.path.realpath(folder)
    # A link led to where another one did, or back up, beyond the root even.
    if real in seen or (seen and top.startswith(os.path.join(real, ''))):
      continue
    seen.add(real)
    folders, names = [], []
    try:
      with os.scandir(folder) as entries:
        for entry in entries:
          if not entry.name.startswith('.'):
            (folders if _is_folder(entry) else names).append(entry.name)
    except OSError as e:
      raise paths.unreadable(legible(str(e.filename or folder)), e) from e
    # Sorted, so that of two links to one folder the same is taken everywhere.
    left += [
      os.path.join(folder, name) for name in sorted(folders, reverse=True)
    ]
    yield from (os.path.join(folder, name) for name in names if _is_image(name))


def _is_folder(entry: os.DirEntry) -> bool:
  """Whether it is one, or a link to one.

  Raises:
    OSError: if the disk cannot tell now.
  """
  try:
    return entry.is_dir()
  except OSError as e:
    if paths.is_transient(e):
      raise
    return False


def _is_image(name: str) -> bool:
  return name.lower().endswith(SUFFIXES) and not name.startswith('.')


def legible(name: str) -> str:
  """A file name as text that can be written; bytes that are none as \\xNN."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def _sizes(files: list[str]) -> list[int]:
  """Bytes of every file; -1 of what is not there.

  Raises:
    OSError: if the disk cannot tell now.
  """
  if len(files) < _MANY:
    return list(map(_size, files))
  # Over a network an answer takes its time, not the disk's.
  some = [files[at : at + _ASKING] for at in range(0, len(files), _ASKING)]
  with concurrent.futures.ThreadPoolExecutor(_ASKING) as executor:
    found = executor.map(lambda part: list(map(_size, part)), some)
    return list(itertools.chain.from_iterable(found))


def _size(path: str) -> int:
  try:
    return os.path.getsize(path)
  except OSError as e:
    # Sizes tell whether a set is another one: a size that is not known now may
    # not stand for it.
    if paths.is_transient(e):
      raise
    return -1  # A broken link: listed as bad when it is read.


def _packaged(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  del setting
  images = packaged.load(spec['name'], part)
  return _dataset(
    images.classes,
    images.ids,
    images.labels,
    sizes=[len(file) for file in images.files],
    read=images.files.__getitem__,
  )


def _tfds(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
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
  return _dataset(
    [came['label'].names[i] for i in used],
    ids,
    labels,
    sizes,
    read=lambda i: records[i]['image'],
    # Positions mean something only within one version and split.
    version=f'{info.full_name} {part}',
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
    with np.load(path, allow_pickle=False) as stored:
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


OPENERS = {'folder': _folder, 'packaged': _packaged, 'tfds': _tfds}


def _open(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  if spec['kind'] not in OPENERS:
    group = setting.rpartition('.')[0]
    raise errors.UserError(
      f'{group}.kind is one of {", ".join(OPENERS)}; {spec["kind"]!r} came.'
    )
  try:
    dataset = OPENERS[spec['kind']](spec, part, setting)
  except OSError as e:
    if not paths.is_transient(e):
      raise
    what = legible(str(e.filename or part))
    raise paths.unreadable(f'{setting}: {what}', e) from e
  if len(set(dataset.ids.tolist())) < len(dataset):
    raise errors.UserError(
      f'{setting}: two images have the same name once it is written as text:'
      ' rename the files whose names are not UTF-8.'
    )
  return dataset


def _fill(spec: Mapping[str, Any]) -> dict[str, Any]:
  return FIELDS | {k: v for k, v in dict(spec).items() if v is not None}


def _named(dataset: Dataset, name: str, prefix: str) -> Dataset:
  ids = np.char.add(prefix, dataset.ids)
  return dataclasses.replace(dataset, name=name, ids=ids)


def _refuse_empty_classes(dataset: Dataset, setting: str) -> None:
  count = np.bincount(dataset.labels, minlength=len(dataset.classes))
  empty = [c for c, n in zip(dataset.classes, count, strict=True) if n == 0]
  if empty:
    raise errors.UserError(
      f'{setting} needs at least one image of every class; {_some(empty)} has'
      ' none: add images, or remove the class.'
    )


def _some(names: list[str]) -> str:
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return ', '.join(names[:5]) + more


# --- The target ---------------------------------------------------------------


def open_target(
  spec: Mapping[str, Any], seed: int, *, testing: bool = True
) -> tuple[Dataset, Dataset]:
  """Opens the labelled target set.

  Args:
    spec: kind, name, dir, train, test, per_class, held_out, folds and fold of
      FIELDS. With per_class = n > 0, n training images of each class are drawn;
      if test is '', the test set is all that the draw leaves. With held_out = x
      > 0, the test set is that share of each class, rounded to the next whole
      image. With folds = n > 0, what would be the training set is cut into n
      parts, evenly in each class, of which number `fold` is the test set and
      the others the training set; the real test set is not opened.
    seed: of the draws, which depend on it and on the ids alone.
    testing: whether there must be test images.

  Returns:
    Training and test set. Both have the training set's classes; an id is
    'target:train/<id>' or 'target:test/<id>', after the part that was read.

  Raises:
    UserError: if a part cannot be opened or is empty, a training class has no
      or too few images, or a test class is unknown to training.
  """
  spec = _fill(spec)
  train = _open(spec, spec['train'], 'target.train')
  train = _named(train, 'target', 'target:train/')
  _refuse_empty_classes(train, 'target.train')
  test = None
  if spec['test'] and not spec['folds']:
    test = _open(spec, spec['test'], 'target.test')
    test = _named(test, 'target', 'target:test/')
    test = _relabel(test, train.classes)
  if spec['held_out']:
    if spec['test'] or not 0 < spec['held_out'] < 1:
      raise errors.UserError(
        'target.held_out is a share between 0 and 1, without target.test;'
        f' came {spec["held_out"]} and target.test={spec["test"]!r}: leave one'
        ' of them out.'
      )
    drawn = _hold_out(train, spec['held_out'], seed)
    test = train.subset(np.flatnonzero(drawn))
    train = train.subset(np.flatnonzero(~drawn))
  if spec['per_class']:
    drawn = _draw(train, spec['per_class'], seed)
    test = train.subset(np.flatnonzero(~drawn)) if test is None else test
    train = train.subset(np.flatnonzero(drawn))
  if spec['folds']:
    inside = _folds(train, spec['folds'], seed) == spec['fold']
    test = train.subset(np.flatnonzero(inside))
    train = train.subset(np.flatnonzero(~inside))
  if test is None:
    test = train.subset(np.arange(0))
  if testing and not len(test):
    raise errors.UserError(
      'The target needs test images; there are none: set --config.target.test,'
      ' --config.target.held_out, or a smaller --config.target.per_class, which'
      ' leaves some.'
    )
  return train, test


def _relabel(test: Dataset, classes: tuple[str, ...]) -> Dataset:
  label_of = {name: label for label, name in enumerate(classes)}
  # A Mac writes é as e and an accent, others as one character.
  composed = functools.partial(unicodedata.normalize, 'NFC')
  alike = {composed(name): label for name, label in label_of.items()}
  found = [label_of.get(x, alike.get(composed(x), -1)) for x in test.classes]
  label = np.array(found, np.int32)
  unknown = [name for name, i in zip(test.classes, found, strict=True) if i < 0]
  if unknown:
    raise errors.UserError(
      'target.test may only hold classes of target.train; it also holds'
      f' {_some(unknown)}: rename or remove them.'
    )
  return dataclasses.replace(test, classes=classes, labels=label[test.labels])


def _by_class(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
  """(class, positions of its images in the order of their ids)."""
  order = np.argsort(dataset.ids, kind='stable')
  order = order[np.argsort(dataset.labels[order], kind='stable')]
  count = np.bincount(dataset.labels, minlength=len(dataset.classes))
  parts = np.split(order, np.cumsum(count)[:-1])
  yield from zip(dataset.classes, parts, strict=True)


def _hold_out(dataset: Dataset, share: float, seed: int) -> np.ndarray:
  """Marks a share of each class, bool [n]; one image of each is left."""
  rng = np.random.default_rng([seed, 1])
  drawn = np.zeros(len(dataset), bool)
  for _, index in _by_class(dataset):
    count = min(round(share * len(index)), len(index) - 1)
    drawn[rng.choice(index, count, replace=False)] = True
  return drawn


def _folds(dataset: Dataset, folds: int, seed: int) -> np.ndarray:
  """The fold of each image, int [n]: as many of a class in each as can be."""
  rng = np.random.default_rng([seed, 2])
  fold, begin = np.empty(len(dataset), int), 0
  for name, index in _by_class(dataset):
    if len(index) < 2:
      raise errors.UserError(
        f'target.folds needs two training images of every class; {name} has'
        f' {len(index)}: add images, or leave target.folds at 0.'
      )
    # A class goes on where the one before ended: folds of one size.
    fold[rng.permutation(index)] = (begin + np.arange(len(index))) % folds
    begin += len(index)
  return fold


def _draw(dataset: Dataset, per_class: int, seed: int) -> np.ndarray:
  """Marks per_class images of each class, bool [n]."""
  rng = np.random.default_rng(seed)
  drawn = np.zeros(len(dataset), bool)
  for name, index in _by_class(dataset):
    if len(index) < per_class:
      raise errors.UserError(
        f'target.per_class needs {per_class} training images of every class;'
        f' {name} has {len(index)}: lower it, or add images.'
      )
    drawn[rng.choice(index, per_class, replace=False)] = True
  return drawn


# --- The source pool ----------------------------------------------------------


def open_pool(specs: Mapping[str, Mapping[str, Any]]) -> Dataset:
  """Opens several sources as one set, their classes side by side.

  Args:
    specs: source name -> kind, name, dir, split, use and quota of FIELDS. A
      quota is the same draw in every run.

  Returns:
    The pool, sources in the order of `specs`; ids '<source>:<id>', classes
    '<source>:<class>'.

  Raises:
    UserError: if there is no source, one cannot be opened, one has a class
      without images or a quota that leaves some class none, or two are the
      same images.
  """
  specs = {k: v for k, v in specs.items() if _fill(v)['use']}
  if not specs:
    raise errors.UserError(
      'The pool needs a source; none was given: --config.source.main.dir=DIR.'
    )
  parts, owner = [], {}
  for name, spec in specs.items():
    spec = _fill(spec)
    field = 'dir' if spec['kind'] == 'folder' else 'split'
    setting = f'source.{name}.{field}'
    part = _named(_open(spec, spec[field], setting), name, f'{name}:')
    _refuse_empty_classes(part, setting)
    if spec['quota']:
      part = part.subset(_quota(part, spec['quota'], f'source.{name}.quota'))
    place = _place(spec)
    if place in owner:
      raise errors.UserError(
        f'Every source needs its own images; source.{owner[place]} and'
        f' source.{name} are the same: remove one of them.'
      )
    owner[place] = name
    parts.append(part)

  first_label = np.cumsum([0] + [len(part.classes) for part in parts])
  first = np.cumsum([0] + [len(part) for part in parts])
  source = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(first))
  reads = [part.read for part in parts]

  def read(i: int) -> bytes:
    s = source[i]
    return reads[s](int(i - first[s]))

  return Dataset(
    name='pool',
    classes=tuple(f'{p.name}:{name}' for p in parts for name in p.classes),
    ids=np.concatenate([part.ids for part in parts]),
    labels=np.concatenate(
      [
        p.labels + np.int32(at)
        for p, at in zip(parts, first_label[:-1], strict=True)
      ]
    ),
    sizes=np.concatenate([part.sizes for part in parts]),
    read=read,
    version=' '.join(part.version for part in parts),
    sources=tuple(part.name for part in parts),
    source=source,
  )


def _quota(dataset: Dataset, quota: int, setting: str) -> np.ndarray:
  """Positions, ascending: the first of every class, the second of every, ..."""
  if not len(dataset.classes) <= quota <= len(dataset):
    raise errors.UserError(
      f'{setting} needs at least an image of each of the'
      f' {len(dataset.classes)} classes, and at most the {len(dataset)} there'
      f' are; {quota} came: change it, or 0 for all.'
    )
  rng = np.random.default_rng(0)
  turn = np.empty(len(dataset))
  for _, index in _by_class(dataset):
    # Whoever comes in the last, incomplete turn is drawn too.
    turn[rng.permutation(index)] = np.arange(len(index)) + rng.random()
  return np.sort(np.argsort(turn, kind='stable')[:quota])


def _place(spec: Mapping[str, Any]) -> tuple[str, ...]:
  """Where a source's images are: equal for sources that are named the same.

  An archive beside a part of it, a folder beside what it wraps, or overlapping
  splits, are not recognised.
  """
  if spec['kind'] == 'folder':
    return 'folder', _resolved(spec['dir'])
  where = spec['dir'] and _resolved(spec['dir'])
  return spec['kind'], spec['name'], where, spec['split']


def _resolved(text: str) -> str:
  path = paths.path(text)
  return str(path if paths.in_store(path) else path.resolve())
