"""Texts that name files of a disk, or objects of a store: gs:// and s3://.

Here every text of a user becomes a path. On a disk it is a `pathlib.Path`, in a
store an `etils.epath.Path`, which has the same methods and asks the store by
fsspec. A store knows whole objects by their keys: there are no links in it, no
appending and no renaming, an object is there once it is whole, and a directory
as long as an object lies below it.
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable

from sjft_jax.errors import UserError, missing_extra

# Scheme -> the package by which fsspec knows the store.
SCHEMES = {'gs': 'gcsfs', 's3': 's3fs'}
_KNOWN = 'a path of a disk, gs://BUCKET/NAME or s3://BUCKET/NAME'
MAX_BYTES = 512 * 2**20  # of one image; more is not read
# How it is said that another attempt to read may succeed.
_UNREADABLE = 'cannot be read now'
# A path that leads to no file, whatever the disk does.
_FOR_GOOD = errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG
# What our own disk has too little of, while a store is read.
_LOCAL = errno.ENOSPC, errno.EDQUOT, errno.EROFS
# As they are where the packages of a store raise what is no OSError.
_PACKAGES = (
  'aiobotocore',
  'aiohttp',
  'botocore',
  'gcsfs',
  'google.auth',
  's3fs',
)


class DamagedError(OSError):
  """A file that no second attempt would read."""


class Unreadable(UserError):  # noqa: N818
  """A file that another attempt may read; nothing made of it is void."""


def path(text) -> pathlib.PurePath:
  """The path that a text means; a path stays what it is.

  Args:
    text: str, or a path.

  Returns:
    A `pathlib.Path`, or for gs:// and s3:// an `etils.epath.Path`.

  Raises:
    UserError: for another scheme, if the package of the store is not
      installed, or if a path in a store has no bucket, a `..` or a character
      that stores take for a pattern.
  """
  if isinstance(text, pathlib.PurePath) and not isinstance(text, pathlib.Path):
    return text
  found = re.match(r'([A-Za-z][A-Za-z0-9+.-]+):(/*)', str(text))
  scheme, slashes = found.groups() if found else ('', '')
  if scheme not in SCHEMES and slashes != '//':
    # A shell leaves the ~ of --workdir=~/runs as it is.
    return pathlib.Path(os.path.expanduser(text))
  if scheme not in SCHEMES or slashes != '//':
    raise UserError(f'Needed {_KNOWN}; {str(text)!r} came: correct it.')
  bucket, *rest = str(text).removeprefix(f'{scheme}://').split('/')
  if not bucket or '..' in (bucket, *rest) or re.search(r'[*?[\]]', str(text)):
    raise UserError(
      f'Needed {_KNOWN}, in a store without "..", "*", "?" and brackets; '
      f'{str(text)!r} came: correct it.'
    )
  return _opened(scheme).Path(text)


@functools.cache
def _opened(scheme):
  """The module of paths, once there is a package for the store."""
  # Otherwise epath asks TensorFlow where that is installed, which knows other
  # stores and other credentials.
  os.environ['EPATH_USE_TF'] = 'false'
  try:
    import fsspec
    from etils import epath

    fsspec.get_filesystem_class(scheme)
  except ImportError as error:
    what = f'{scheme}:// needs the package {SCHEMES[scheme]} ({error})'
    raise missing_extra(what, 'cloud') from error
  # A remembered listing would hide what other processes write.
  fsspec.config.conf.setdefault(scheme, {})['use_listings_cache'] = False
  return epath


def in_store(path) -> bool:
  """Whether a path is of a store, not of a disk."""
  return not isinstance(path, pathlib.Path)


def on_disk(text, what: str) -> pathlib.Path:
  """The path that a text means, which must be of a disk.

  Args:
    text: str, or a path.
    what: its setting, and why, to begin the sentence with.

  Raises:
    UserError: if it is of a store.
  """
  found = path(text)
  if in_store(found):
    raise UserError(
      f'{what} must lie on a disk, not in {found}: copy it there.'
    )
  return found


def cache() -> pathlib.Path:
  """The user's directory for what can be made again.

  Of a user without a home it can neither be made nor read.
  """
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  found = os.path.expanduser(home)
  return pathlib.Path(os.devnull if found[0] == '~' else found) / 'sjft_jax'


def reader(root) -> Callable[[str], bytes]:
  """Function of a name below `root` to the bytes of that file.

  It is safe in threads. Of what cannot be read on a disk it raises OSError; of
  what is not in a store FileNotFoundError, and UserError if the store cannot
  tell, since that is not the fault of an image. A file of more than MAX_BYTES
  is not read: DamagedError.
  """
  if in_store(root):
    return lambda name: _capped(f'{root}/{name}')

  def read(name):
    with open(os.path.join(root, name), 'rb') as file:
      refuse_large(os.fstat(file.fileno()).st_size)
      return file.read()

  return read


def _capped(text):
  """The bytes of an object, of which no more are asked for than may be."""
  with _asking(text):
    store = _store(text)
    try:
      data = store.cat_file(text, start=0, end=MAX_BYTES + 1)
    except FileNotFoundError:
      raise
    except Exception:
      # Stores refuse a part of an empty object, each by an error of its own;
      # what is silent stays silent about the size, too.
      with contextlib.suppress(Exception):
        if store.size(text) == 0:
          return b''
      raise
  refuse_large(len(data))
  return data


def refuse_large(size: int) -> None:
  """Raises DamagedError for an image of so many bytes, if they are too many."""
  if size > MAX_BYTES:
    raise DamagedError(errno.EFBIG, f'larger than {MAX_BYTES} bytes')


def parts(path) -> Callable[[int, int], bytes]:
  """Function of (first byte, count) to bytes of a file; errors as `reader`."""
  if not in_store(path):

    def read(start, count):
      with open(path, 'rb') as file:
        file.seek(start)
        return file.read(count)

    return read
  return lambda start, count: _cut(str(path), start, start + count)


def read(path) -> bytes:
  """The bytes of a file, however many; other errors as `reader`."""
  return _cut(str(path), None, None) if in_store(path) else path.read_bytes()


def _cut(text, start, stop):
  with _asking(text):
    return _store(text).cat_file(text, start=start, end=stop)


def below(directory) -> list[tuple[str, int]]:
  """(name, bytes) of every file below a directory, sorted by name.

  Names are relative, with slashes. No link to a directory is followed.
  """
  if not in_store(directory):
    files = (f for f in directory.rglob('*') if f.is_file())
    return sorted(
      (f.relative_to(directory).as_posix(), f.stat().st_size) for f in files
    )
  text = str(directory)
  with _asking(text):
    store = _store(text)
    key = store._strip_protocol(text)
    found = store.find(text, detail=True)
  return sorted(
    (name.removeprefix(f'{key}/'), int(info['size']))
    for name, info in found.items()
    if name.startswith(f'{key}/')
  )


def put(pairs: Iterable[tuple[pathlib.Path, pathlib.PurePath]]) -> None:
  """Puts files of the disk into a store; each is there when it is whole."""
  _transfer('put', [(str(local), str(path)) for local, path in pairs])


def get(pairs: Iterable[tuple[pathlib.PurePath, pathlib.Path]]) -> None:
  """Copies objects of a store to the disk; directories are made."""
  _transfer('get', [(str(path), str(local)) for path, local in pairs])


def _transfer(how, pairs):
  if not pairs:
    return
  sources, destinations = map(list, zip(*pairs, strict=True))
  text = destinations[0] if how == 'put' else sources[0]
  with _asking(text):
    try:
      getattr(_store(text), how)(sources, destinations)
    except FileNotFoundError as error:
      raise UserError(f'{text} cannot be reached: {error}.') from error


def remove_tree(directory) -> None:
  """Removes a directory and all that is in it, if it is there."""
  if not in_store(directory):
    shutil.rmtree(directory, ignore_errors=True)
    return
  with _asking(directory), contextlib.suppress(FileNotFoundError):
    _store(str(directory)).rm(str(directory), recursive=True)


def _store(text):
  import fsspec

  return fsspec.filesystem(text.partition(':')[0])


@contextlib.contextmanager
def _asking(path):
  """Says in one line that a store gave no answer."""
  try:
    yield
  except (FileNotFoundError, UserError):
    raise
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _LOCAL:
      raise
    raise UserError(_silent(error, path)) from error


def fault(error: BaseException) -> str | None:
  """The line for what a store's package raised, or None if that is not it."""
  module = type(error).__module__
  theirs = any(f'{module}.'.startswith(f'{name}.') for name in _PACKAGES)
  return _silent(error, 'The store') if theirs else None


def _silent(error, what):
  return (
    f'{what} cannot be reached: {type(error).__name__}: {error}. Look at the '
    'name, your credentials and the network, then give the same command again.'
  )


def is_transient(error: OSError) -> bool:
  """Whether another attempt to read a file may succeed."""
  gone = isinstance(error, (FileNotFoundError, DamagedError))
  return not gone and error.errno not in _FOR_GOOD


def why(error: OSError) -> str:
  """Why a file cannot be read, so worded that `may_pass` knows it."""
  what = _UNREADABLE if is_transient(error) else 'cannot be read'
  return f'{what}: {error.strerror or error}'


def may_pass(reason: str) -> bool:
  """Whether another attempt to read a file may succeed.

  As `is_transient`, where the error is kept as words alone.

  Args:
    reason: why an image is bad: from `why`, or what is wrong with the
      bytes of one that could be read.
  """
  return reason.startswith(_UNREADABLE)


def cause(error: BaseException) -> BaseException | None:
  """What of a chain of errors is the fault of a disk or a store.

  Readers of archives hide it behind one that says that the archive is damaged.
  They raise OSError for damage, too, but without a number, or with that of a
  place before a file's beginning, EINVAL.

  Args:
    error: what a reader of archives raised.

  Returns:
    The first such error, or None: the archive is damaged.
  """
  while error is not None:
    number = getattr(error, 'errno', None)
    lost = isinstance(error, (TimeoutError, ConnectionError))
    if lost or number not in (None, 0, errno.EINVAL) or fault(error):
      return error
    error = error.__cause__ or error.__context__
  return None


def unreadable(what, error: BaseException) -> Unreadable:
  """The line for a file that another attempt may read.

  Args:
    what: the file, to begin the sentence with.
    error: why it cannot be read.
  """
  reason = getattr(error, 'strerror', '') or str(error) or repr(error)
  return Unreadable(
    f'{what} {_UNREADABLE} ({reason}). Give yourself the right to read it, or '
    'look after its disk, then give the same command again.'
  )
