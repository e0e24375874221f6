"""Class folders as image sets: on a disk, in a store, in an archive."""

import os

from sjft_jax import errors, paths
from sjft_jax.data import csv_lists, image_files, packs
from sjft_jax.data.dataset import Dataset, bare
from sjft_jax.data.image_files import is_image, legible

# Links of such names that lead nowhere were no classes.
_NO_CLASSES = ('.csv', '.gz', '.html', '.json', '.md', '.pdf', '.py', '.tar',
               '.tsv', '.txt', '.xml', '.yaml', '.yml', '.zip')  # fmt: skip
# Where a Mac keeps in a zip what its files have beside their content.
_MAC = '__MACOSX'
# Names of folders that hold classes, not images.
_TRAIN = {'train', 'training'}
_PARTS = {*_TRAIN, 'test', 'testing', 'val', 'valid', 'validation', 'dev',
          'eval'}  # fmt: skip


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
    return csv_lists.open_list(root, setting)
  if found := packs.split(root):
    return _packed(*found, setting)
  if not root.is_dir():
    what = 'is not a folder' if root.exists() else 'does not exist'
    raise errors.UserError(f'{need}; {part} {what}: correct the path.')
  look = _stored if paths.in_store(root) else _walked
  folders, loose, rows, stamp = look(root)
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
    stamp=stamp,
  )


def _refuse_parts(folders, part, setting):
  """Or a whole set would be taken for two classes, and nobody would notice."""
  parts = [name for name in folders if name.lower() in _PARTS]
  train = [name for name in parts if name.lower() in _TRAIN]
  # One of them beside other folders may be a class: a train, a test.
  whole = len(parts) == len(folders) or 0 < len(train) < len(parts)
  if not (parts and whole):
    return
  raise errors.UserError(
    f'{setting} needs a folder that holds one folder of images per class; '
    f'{part} holds the parts of a set, {", ".join(parts)}: give one of them, '
    f'as {part}/{(train or parts)[0]}.'
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
  """(class folders, images in none, (label, name, bytes)s, stamp) of a disk."""
  folders, loose = [], []
  with os.scandir(root) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      if image_files.is_folder(entry):
        folders.append(entry.name)
      elif is_image(entry.name):
        loose.append(entry.name)
      elif (
        not entry.name.lower().endswith(_NO_CLASSES)
        and entry.is_symlink()
        and image_files.stat(entry.path)[0] < 0
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
    for path in sorted(image_files.image_files(os.path.join(root, folder)))
  ]
  sizes, stamp = image_files.stats([path for _, path in rows])
  rows = [
    (label, os.path.relpath(path, root), size)
    for (label, path), size in zip(rows, sizes, strict=True)
  ]
  return folders, loose, rows, stamp


def _stored(root):
  """What `_walked` returns, of a store: one listing, no question per image."""
  seen = [row for row in paths.below(root) if not _hidden(row[0])]
  folders = sorted({name.partition('/')[0] for name, _ in seen if '/' in name})
  loose = [name for name, _ in seen if '/' not in name and is_image(name)]
  label_of = {name: label for label, name in enumerate(folders)}
  rows = [
    (label_of[name.partition('/')[0]], name, size)
    for name, size in seen
    if '/' in name and is_image(name.rpartition('/')[2])
  ]
  return folders, loose, sorted(rows), ''


def _packed(path, inside: str, setting: str) -> Dataset:
  """A folder inside an archive; what all its images have in common is left."""
  pack = packs.load(path, setting)
  prefix = f'{inside}/' if inside else ''
  found = [
    (name.removeprefix(prefix), i)
    for i, name in enumerate(pack.names)
    if name.startswith(prefix)
    and not _hidden(name)
    and is_image(name.rpartition('/')[2])
  ]
  _refuse_unread(pack, prefix, path, setting)
  around = [str(path), inside]
  # Of a test set what all have in common may be the class, as in a folder.
  while (
    setting != 'target.test'
    and len({name.partition('/')[0] for name, _ in found}) == 1
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
  prefix = ''.join(f'{name}/' for name in around[1:] if name)
  empty = {
    name.removeprefix(prefix)
    for name in pack.folders
    if name.startswith(prefix) and not _hidden(name) and name != _MAC
  }
  classes = {name.partition('/')[0] for name, _ in found}
  # Refused by name later, as an empty class folder is.
  classes = sorted(classes.union(name for name in empty if '/' not in name))
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
    stamp='' if paths.in_store(path) else image_files.stats([str(path)])[1],
  )


def _refuse_unread(pack, prefix, path, setting):
  """Or images, and classes with them, would be missing unnoticed."""
  unread = sorted(
    name
    for name in pack.left
    if name.startswith(prefix)
    and not _hidden(name)
    # One without an ending may be a link to a folder, and so to a class.
    and (is_image(name) or '.' not in name.rpartition('/')[2])
  )
  if unread:
    raise errors.UserError(
      f'{setting} needs an archive of plain files; {legible(unread[0])} in '
      f'{path} (in all {len(unread)}) is a link, or sparse: pack it again with '
      'what the links lead to (tar --dereference, without --sparse).'
    )


def _hidden(name: str) -> bool:
  return any(part.startswith('.') for part in name.split('/'))
