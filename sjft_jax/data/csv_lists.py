"""Images that a csv file lists, which lies beside them or above."""

import csv
import os

from sjft_jax import errors, files, paths
from sjft_jax.data import image_files
from sjft_jax.data.dataset import Dataset, bare
from sjft_jax.data.image_files import legible


def open_list(path, setting: str) -> Dataset:
  """Opens a csv of path and label; paths are relative to the csv.

  Args:
    path: of the csv, on a disk or in a store.
    setting: the name of its setting, for messages.

  Returns:
    A set without a name; ids are the paths, as they are written.

  Raises:
    UserError: if it is no such csv, or a row names no file below it.
    OSError: if a disk cannot tell now.
  """
  need = f'{setting} needs a csv with the columns path and label'
  try:
    with files.opened_text(path, 'utf-8-sig') as file:
      reader = csv.DictReader(file, strict=True, skipinitialspace=True)
      if not {'path', 'label'} <= set(reader.fieldnames or ()):
        came = ', '.join(reader.fieldnames or ('nothing',))
        raise errors.UserError(f'{need}; {path} has {came}: add them.')
      rows = [
        (
          reader.line_num,
          row['path'],
          (row['label'] or '').strip(),
          None in row,
        )
        for row in reader
      ]
  except (csv.Error, UnicodeError) as e:
    raise errors.UserError(f'{need}; {path} is none ({e}): repair it.') from e
  # Not where a link to the csv leads: a cache of downloads, or git-annex, keeps
  # every file elsewhere, by a name of its own.
  root = path.parent if paths.in_store(path) else path.absolute().parent
  if not paths.in_store(path) and path.is_symlink():
    # Unless the images lie there, and not here.
    there = path.resolve().parent
    some = [name for _, name, *_ in rows[:9] if name and '\0' not in name]
    here = any((root / name).exists() for name in some)
    if not here and any((there / name).exists() for name in some):
      root = there
  base = str(root).partition('://')[2] or os.path.normpath(root)
  inside, seen = os.path.join(base, ''), {}
  for line, name, label, more in rows:
    # Two spellings of a path would be one image twice.
    whole = os.path.normpath(os.path.join(base, name or ''))
    fault = ''
    if not name or not label:
      fault = 'lacks a path or a label'
    elif more:
      fault = 'has more columns than the first: quote what holds a comma'
    elif '\0' in name:
      fault = 'holds bytes that are no text'
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
  classes = sorted({label for _, _, label, _ in rows})
  label_of = {name: label for label, name in enumerate(classes)}
  # A store takes a key as it is written, `./` and all; on a disk, `x/..` leads
  # elsewhere if x is a link.
  names = [whole.removeprefix(inside) for whole in seen]
  if paths.in_store(root):
    there = dict(paths.below(root))
    sizes, stamp = [there.get(name, -1) for name in names], ''
  else:
    sizes, stamp = image_files.stats(
      [os.path.join(root, name) for name in names]
    )
  read = paths.reader(root)
  return bare(
    classes=classes,
    ids=[name.replace(os.sep, '/') for _, name, *_ in rows],
    labels=[label_of[label] for _, _, label, _ in rows],
    sizes=sizes,
    read=lambda i: read(names[i]),
    stamp=stamp,
  )
