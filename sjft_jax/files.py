"""Files that are whole or absent.

On a disk they are written beside and renamed. In a store, which takes whole
objects alone, they are written on the disk and then put.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time
import zipfile
import zlib

import numpy as np

from sjft_jax import paths
from sjft_jax.errors import UserError

try:
  import fcntl
except ModuleNotFoundError:  # Windows has none.
  fcntl = None

# Between two looks for a file of another process; every look at a store is
# a request that is paid for.
POLL_SECONDS = 0.2
POLL_STORE_SECONDS = 2.0
_NEEDED = object()


@contextlib.contextmanager
def replacing(path, mode: str = 'wb', shared: bool = False):
  """Opens a file beside `path` that takes its name when the block succeeds.

  Args:
    path: of the file.
    mode: 'wb' or 'w'.
    shared: other runs may write the same file meanwhile, as in a cache.
  """
  path = paths.path(path)
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  if paths.in_store(path):
    with scratch() as directory:
      beside = directory / 'file'
      with open(beside, mode, **text) as file:
        yield file
      paths.put([(beside, path)])
    return
  _make(path.parent)
  beside = _beside(path)
  if shared:
    own = f'{socket.gethostname()}-{os.getpid()}'
    beside = beside.with_name(f'.{path.name}.{own}.part')
  try:
    with open(beside, mode, **text) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  except BaseException:
    beside.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def building(directory, last: str):
  """A path beside `directory` that takes its name when the block succeeds.

  Args:
    directory: the path.
    last: name of the file in it by which one knows that it is whole. A store
      has no directories to rename: it gets this file after all others.
  """
  directory = paths.path(directory)
  if paths.in_store(directory):
    with scratch() as parent:
      yield parent / 'whole'
      paths.remove_tree(directory)
      names = [name for name, _ in paths.below(parent / 'whole')]
      for some in ([n for n in names if n != last], [last]):
        paths.put([(parent / 'whole' / n, directory / n) for n in some])
    return
  _make(directory.parent)
  beside = _beside(directory)
  shutil.rmtree(beside, ignore_errors=True)
  try:
    yield beside
    os.replace(beside, directory)
  except BaseException:
    shutil.rmtree(beside, ignore_errors=True)
    raise


@contextlib.contextmanager
def locked(directory: pathlib.Path, busy: str):
  """Keeps other processes of this machine out of a directory for the block.

  Where the system or the file system knows no locks, nobody is kept out.

  Args:
    directory: of a disk.
    busy: what to say where another process is in it.

  Raises:
    UserError: if one is.
  """
  if fcntl is None:
    yield
    return
  # The directory itself: no file is left, and none has to be looked after.
  handle = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(busy) from error
    except OSError:
      pass  # A file system without locks.
    yield
  finally:
    os.close(handle)


def _make(directory):
  """Makes a directory of the disk, and those above it, where there is none."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except FileExistsError as error:
    # What a file in its place is called where it is not the last one.
    raise NotADirectoryError(
      errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)
    ) from error


def _beside(path):
  """One name for every process: what a killed one left is written over.

  (Of a shared file every process has its own, and what it left stays.)
  """
  return path.with_name(f'.{path.name}.part')


@contextlib.contextmanager
def scratch():
  """A directory of the disk, gone after the block; TMPDIR says on which."""
  with tempfile.TemporaryDirectory(prefix='sjft_jax-') as name:
    yield pathlib.Path(name)


@contextlib.contextmanager
def on_disk(path):
  """A file as a path of the disk: itself, or of a store a copy for the block.

  Raises:
    UserError: if it is of a store and cannot be copied.
  """
  path = paths.path(path)
  if not paths.in_store(path):
    yield path
    return
  with scratch() as directory:
    paths.get([(path, directory / path.name)])
    yield directory / path.name


def copy_tree(source, directory) -> None:
  """Copies a directory to a new one of the disk."""
  if not paths.in_store(source):
    shutil.copytree(source, directory)
    return
  names = [name for name, _ in paths.below(source)]
  paths.get([(source / name, directory / name) for name in names])


def adopt(directory, last: str, donors, is_same) -> bool:
  """Copies to `directory`, if it is not there, what a donor has of the same.

  Args:
    directory: the path.
    last: as in `building`.
    donors: directories that may hold it, in the order in which they are asked.
    is_same: function of a donor in which `last` is.

  Returns:
    Whether it was copied.
  """
  if paths.path(directory).exists():
    return False
  for donor in map(paths.path, donors):
    if (donor / last).exists() and is_same(donor):
      with building(directory, last) as beside:
        copy_tree(donor, beside)
      return True
  return False


def opened(path):
  """A file open for reading bytes at any place; of a store, all in memory."""
  path = paths.path(path)
  if paths.in_store(path):
    return io.BytesIO(paths.read(path))
  return open(path, 'rb')


def opened_text(path, encoding: str = 'utf-8'):
  """A file open for reading text whose ends of lines are left as they are."""
  return io.TextIOWrapper(opened(path), encoding=encoding, newline='')


def write_json(path, value, shared: bool = False):
  """Writes `value` as JSON: keys in their order, two spaces, a last newline."""
  with replacing(path, shared=shared) as file:
    file.write(json_bytes(value))


def json_bytes(value) -> bytes:
  """The bytes of the file that `write_json` writes."""
  return f'{json.dumps(value, indent=2, ensure_ascii=False)}\n'.encode()


def wait_for(path):
  """Returns once there is such a file: another process writes it."""
  path = paths.path(path)
  seconds = POLL_STORE_SECONDS if paths.in_store(path) else POLL_SECONDS
  while not path.exists():
    time.sleep(seconds)


def read_json(path, default=_NEEDED):
  """The value of a JSON file.

  Args:
    path: of the file.
    default: the value where there is no such file.

  Raises:
    FileNotFoundError: where there is neither.
  """
  path = paths.path(path)
  if default is not _NEEDED and not path.exists():
    return default
  with opened(path) as file:
    return json.loads(file.read().decode())


def write_csv(path, header, rows):
  """Writes a csv file.

  Args:
    path: of the file.
    header: names of the columns.
    rows: of as many values each; a generator's are never held together.
  """
  with replacing(path, 'w') as file:
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)


# What NumPy raises for a file that is no npz, is cut, or lacks an array.
NO_NPZ = (
  OSError,
  ValueError,
  KeyError,
  IndexError,
  TypeError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)


def read_npz(path) -> dict[str, np.ndarray]:
  """The arrays of an npz file by name; nothing in it is unpickled.

  Raises:
    ValueError: if it holds what only unpickling could read.
  """
  with opened(path) as file, np.load(file, allow_pickle=False) as stored:
    return dict(stored)


def read_bytes(path) -> bytes:
  """The bytes of a file.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from error


def digest(path) -> str:
  """SHA-256 of a file, in hex.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    with on_disk(path) as found, open(found, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error
