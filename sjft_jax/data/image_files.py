"""Which files of a disk are images, their sizes and times, names as text."""

import concurrent.futures
import hashlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from sjft_jax import paths

SUFFIXES = ('.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pgm', '.png',
            '.ppm', '.tif', '.tiff', '.webp')  # fmt: skip
# Questions to a disk that wait for their answers at once, and for how many
# files that is worth it.
_ASKING, _MANY = 32, 1024


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
            (folders if is_folder(entry) else names).append(entry.name)
    except OSError as e:
      raise paths.unreadable(legible(str(e.filename or folder)), e) from e
    # Sorted, so that of two links to one folder the same is taken everywhere.
    left += [
      os.path.join(folder, name) for name in sorted(folders, reverse=True)
    ]
    yield from (os.path.join(folder, name) for name in names if is_image(name))


def is_folder(entry: os.DirEntry) -> bool:
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


def is_image(name: str) -> bool:
  """Whether a file's name is that of an image, and not hidden."""
  return name.lower().endswith(SUFFIXES) and not name.startswith('.')


def legible(name: str) -> str:
  """A file name as text that can be written; bytes that are none as \\xNN."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def stats(names: list[str]) -> tuple[list[int], str]:
  """Bytes of every file, -1 of what is not there; a digest of their times.

  Raises:
    OSError: if the disk cannot tell now.
  """
  if len(names) < _MANY:
    found = list(map(stat, names))
  else:
    # Over a network an answer takes its time, not the disk's.
    some = [names[at : at + _ASKING] for at in range(0, len(names), _ASKING)]
    with concurrent.futures.ThreadPoolExecutor(_ASKING) as executor:
      parts = executor.map(lambda part: list(map(stat, part)), some)
      found = list(itertools.chain.from_iterable(parts))
  times = np.array([time for _, time in found], '<i8')
  return [size for size, _ in found], hashlib.sha256(times).hexdigest()


def stat(name: str) -> tuple[int, int]:
  """(bytes, when it was written, ns) of a file."""
  try:
    found = os.stat(name)
  except OSError as e:
    # Sizes tell whether a set is another one: a size that is not known now may
    # not stand for it.
    if paths.is_transient(e):
      raise
    return -1, 0  # A broken link: listed as bad when it is read.
  return found.st_size, found.st_mtime_ns
