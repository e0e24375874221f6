"""Folders of class folders as image sets: on a disk, in a store, in an archive.

Or the images that a csv file lists, beside it.
"""

import concurrent.futures
import csv
import itertools
import os
from collections.abc import Iterator

from sjft_jax import errors, files, paths
from sjft_jax.data import packs
from sjft_jax.data.dataset import Dataset, bare

SUFFIXES = ('.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pgm', '.png',
            '.ppm', '.tif', '.tiff', '.webp')  # fmt: skip
# Links of such names that lead nowhere were no classes.
_NO_CLASSES = ('.csv', '.gz', '.html', '.json', '.md', '.pdf', '.py', '.tar',
               '.tsv', '.txt', '.xml', '.yaml', '.yml', '.zip')  # fmt: skip
# Questions to a disk that wait for their answers at once, and for how many
# files that is worth it.
_ASKING, _MANY = 32, 1024
# Names of folders that hold classes, not images.
_PARTS = {'train', 'training', 'test', 'testing', 'val', 'valid', 'validation'}


def open_folder(part: str, setting: str) -> Dataset:
  """Opens class folders, an archive of them, or a csv of path and label.

  Args:
    part: a directory, an archive or a folder in one, or a csv file; on a disk
      or in a store.
    setting: the name of its setting, for messages.

  Returns:
    A set without a name; ids are paths with slashes, from the folder on.

  Raises:
    UserError: if there is no such thing, or it holds no classes.
    OSError: if a disk cannot tell now.
  """
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
    return open_folder(f'{part.rstrip("/")}/{folders[0]}', setting)
  _refuse_parts(folders, part, setting)
  names = [name for _, name, _ in rows]
  inside = [name.replace(os.sep, '/') for name in names]
  _refuse_stray(inside, part, setting)
  read = paths.reader(root)
  return bare(
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
  return bare(
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
  return bare(
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


def _sizes(names: list[str]) -> list[int]:
  """Bytes of every file; -1 of what is not there.

  Raises:
    OSError: if the disk cannot tell now.
  """
  if len(names) < _MANY:
    return list(map(_size, names))
  # Over a network an answer takes its time, not the disk's.
  some = [names[at : at + _ASKING] for at in range(0, len(names), _ASKING)]
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
