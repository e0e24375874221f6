"""Images inside zip and tar archives, read where they lie.

Nothing is unpacked to disk. A zip and a plain tar give any member at once; a
tar.gz is read through once when it is opened, and from then on at points (32 kB
of memory each) kept every 256 kB, or further apart: about 8,192 of them, unless
what it holds was much larger before it was packed. In a store a zip is the
better choice: it has a list at its end, a tar is read through to be listed.
"""

import bz2
import collections
import dataclasses
import errno
import io
import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable

from sjft_jax import errors, paths

SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz')
# Bytes between two points of a tar.gz, the least; points, about the most.
_SPACING, _POINTS = 256 * 2**10, 8192
_AT_A_TIME = 256 * 2**10  # bytes that are read of a tar.gz
_STEP = 4096  # bytes, the least that zipfile reads at a time
# Bytes of a zip's header before a member, without and with its two longest
# fields.
_LOCAL = 30
_LOCAL_MOST = _LOCAL + 2 * (2**16 - 1)
# What a reader of archives raises for one that is damaged, or of a kind that it
# does not read.
DAMAGE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  OSError,
  NotImplementedError,
  UnicodeError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
  """The regular files of an archive.

  Attributes:
    names: of every member, its path in the archive, sorted.
    sizes: of every member in bytes, as the archive states it.
    read: position in `names` -> bytes; safe in threads; raises OSError.
    folders: paths of the directories that have an entry of their own.
    left: paths of what is there and cannot be read: symbolic links, sparse
      files, hard links to what is not there.
  """

  names: list[str]
  sizes: list[int]
  read: Callable[[int], bytes]
  folders: list[str]
  left: list[str]


def split(path):
  """(archive, path inside it) of ARCHIVE or ARCHIVE/INSIDE; None if it is none.

  A directory may be called x.zip: only files are archives.
  """
  for i, parent in enumerate((path, *path.parents)):
    if parent.name.lower().endswith(SUFFIXES) and parent.is_file():
      return parent, '/'.join(path.parts[len(path.parts) - i :])
  return None


def load(path, setting: str) -> Pack:
  """Opens an archive.

  Args:
    path: of a zip, tar, tar.gz or tgz file, on a disk or in a store.
    setting: the name of its setting, for errors.

  Returns:
    Its files, and the names of what is none.

  Raises:
    UserError: if it is damaged, incomplete or encrypted, a name leads out of
      it or comes twice, a package to read it is missing, or it cannot be read
      now.
  """
  opener = _zip if path.name.lower().endswith('.zip') else _tar
  try:
    members, folders, left, read = opener(path, setting)
  except DAMAGE as e:
    if fault := paths.cause(e):
      raise paths.unreadable(f'{setting}: {path}', fault) from e
    _refuse_misnamed(path, setting)
    raise errors.UserError(
      f'{setting} needs a whole archive; {path} is damaged or incomplete'
      f' ({e or type(e).__name__}): get it again.'
    ) from e
  members = [(_plain(name), *where) for name, *where in members]
  members.sort(key=lambda member: member[0])
  names = [name for name, *_ in members]
  for name, after in zip(names, [*names, None][1:], strict=True):
    if name == after or name.startswith('/') or '..' in name.split('/'):
      fault = 'comes twice' if name == after else 'leads out of it'
      raise errors.UserError(
        f'{setting} needs an archive of image folders; in {path} the name'
        f' {name!r} {fault}: pack it again.'
      )

  def checked(i: int) -> bytes:
    _, size, where = members[i]
    paths.refuse_large(size)
    try:
      data = read(where, size)
    except DAMAGE as e:
      if fault := paths.cause(e):
        raise fault from None
      raise paths.DamagedError(errno.EIO, f'damaged in the archive: {e}') from e
    if len(data) != size:
      raise paths.DamagedError(errno.EIO, 'incomplete in the archive')
    return data

  return Pack(
    names=names,
    sizes=[m[1] for m in members],
    read=checked,
    folders=list(map(_plain, folders)),
    left=list(map(_plain, left)),
  )


def _plain(name):
  """As a tar names it that was made of `.` and of `*`."""
  return name.removeprefix('./')


# By what they begin with, the kinds that the others are named as.
_KINDS = ((b'PK', '.zip'), (b'\x1f\x8b', '.tar.gz'), (b'BZh', '.tar.bz2'),
          (b'\xfd7zXZ', '.tar.xz'), (b'(\xb5/\xfd', '.tar.zst'),
          (b'7z\xbc\xaf', '.7z'), (b'Rar!', '.rar'))  # fmt: skip


def _refuse_misnamed(path, setting):
  """Says what an archive is that is not what its name says."""
  head = paths.parts(path)(0, tarfile.BLOCKSIZE)
  found = [kind for start, kind in _KINDS if head.startswith(start)]
  found += ['.tar'] if head[257:262] == b'ustar' else []
  name = path.name.lower()
  if not found or name.endswith(found[0]):
    return
  if name.endswith('.tgz') and found[0] == '.tar.gz':
    return
  todo = 'rename it' if found[0] in SUFFIXES else 'pack it as one of those'
  raise errors.UserError(
    f'{setting} needs a .zip, .tar or .tar.gz file, named as what it is; '
    f'{path} is a {found[0]} file: {todo}.'
  )


def _zip(path, setting):
  with path.open('rb') as file, zipfile.ZipFile(file) as archive:
    infos, end = archive.infolist(), archive.start_dir
  # A member ends where the next begins, whatever it says of itself.
  ends = [*sorted(info.header_offset for info in infos), end][1:]
  places = sorted(infos, key=lambda info: info.header_offset)
  members, folders, left = [], [], []
  for info, end in zip(places, ends, strict=True):
    if info.flag_bits & 1:
      raise errors.UserError(
        f'{setting} needs an archive that is not encrypted; {path} is:'
        ' unpack it and pack it again.'
      )
    if info.is_dir():
      folders.append(info.filename.rstrip('/'))
    elif stat.S_ISLNK(info.external_attr >> 16):
      left.append(info.filename)
    else:
      members.append((info.filename, info.file_size, (info, end)))
  part = paths.parts(path)

  def read(where, size):
    info, end = where
    most = _LOCAL_MOST + info.compress_size
    data = part(info.header_offset, min(end - info.header_offset, most))
    if data[:4] != b'PK\3\4' or len(data) < _LOCAL:
      raise zipfile.BadZipFile('no file begins where the list says')
    file = io.BytesIO(data)
    # Before the data stand a name and what else the packer wrote.
    file.seek(_LOCAL + sum(struct.unpack('<2H', data[_LOCAL - 4 : _LOCAL])))
    # One byte more: a header may understate the size.
    if info.compress_type == zipfile.ZIP_BZIP2:
      return _bzip2(file, info, size + 1)
    file = zipfile.ZipExtFile(file, 'r', info)
    if info.compress_type == zipfile.ZIP_LZMA:
      return _in_steps(file, size + 1)
    return file.read(size + 1)

  return members, folders, left, read


# Of these two zipfile unpacks all that it reads, whatever was asked for.


def _bzip2(file, info, most):
  """At most so many bytes of a member of a zip."""
  try:
    data = bz2.BZ2Decompressor().decompress(file.read(info.compress_size), most)
  except OSError as e:
    raise zipfile.BadZipFile(str(e)) from e
  if len(data) == info.file_size and zlib.crc32(data) != info.CRC:
    raise zipfile.BadZipFile('wrong checksum')
  return data


def _in_steps(file, most):
  """At most so many bytes of a member; 4 kB of LZMA are 28 MB at most."""
  pieces = []
  while most > 0 and (piece := file.read(min(most, _STEP))):
    pieces.append(piece)
    most -= len(piece)
  return b''.join(pieces)


def _tar(path, setting):
  if path.name.lower().endswith('.tar'):
    with path.open('rb') as file:
      return *_members(file), paths.parts(path)
  try:
    import indexed_gzip
  except ModuleNotFoundError as e:
    what = f'{setting}: to read {path} where it lies needs indexed_gzip'
    raise errors.missing_extra(what, 'packs') from e
  packed = path.open('rb') if paths.in_store(path) else _Reopened(path)
  spacing = max(_SPACING, packed.seek(0, os.SEEK_END) // _POINTS)
  packed.seek(0)
  file = indexed_gzip.IndexedGzipFile(
    fileobj=packed, spacing=spacing, readbuf_size=_AT_A_TIME
  )
  found = _members(file)
  # Its buffer serves the list, as every read begins to unpack at a point; after
  # an image it would read on, too.
  return *found, _Unpacked(file.detach().pread, 2 * spacing)


class _Reopened(io.RawIOBase):
  """A file of the disk, opened for every read.

  A file with a number indexed_gzip would read by that, in C, and could not tell
  a fault of the disk from damage.
  """

  def __init__(self, path):
    self._part, self._size, self._at = paths.parts(path), path.stat().st_size, 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def readinto(self, buffer):
    data = self._part(self._at, len(buffer))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def seek(self, offset, whence=os.SEEK_SET):
    self._at = offset + (0, self._at, self._size)[whence]
    return self._at

  def tell(self):
    return self._at


class _Unpacked:
  """Function of (first byte, count) to unpacked bytes; safe in threads.

  To reach an image, half of what lies between two points is unpacked. Where
  images are read one after the other, those that follow are kept.

  Args:
    pread: (count, first byte) -> bytes.
    ahead: bytes that are unpacked at once then.
  """

  def __init__(self, pread, ahead):
    self._pread, self._ahead, self._end = pread, ahead, 0
    self._lock = threading.Lock()
    # Threads may be a little behind: the block before the last one, too.
    self._blocks = collections.deque(maxlen=2)

  def __call__(self, at, size):
    with self._lock:
      follows = 0 <= at - self._end <= self._ahead
      self._end = at + size
      for start, data in self._blocks:
        if start <= at and self._end <= start + len(data):
          return data[at - start : self._end - start]
      if not follows or size > self._ahead:
        return self._pread(size, at)
      data = self._pread(self._ahead, at)
      self._blocks.append((at, data))
      return data[:size]


def _members(file) -> tuple[list[tuple[str, int, int]], list[str], list[str]]:
  """Of a tar (name, bytes, where they begin)s of its files; folders; the rest.

  What is neither a file, a folder nor a link (a device, a pipe) is no part of
  it.
  """
  members, links, folders, left = [], [], [], []
  with tarfile.open(fileobj=file, mode='r:') as archive:
    for member in archive:
      if member.isdir():
        folders.append(member.name)
      elif member.issym() or member.issparse():
        left.append(member.name)
      elif member.isreg():
        members.append((member.name, member.size, member.offset_data))
      elif member.islnk():
        links.append((member.name, member.linkname))
      archive.members.clear()  # It keeps them all.
    # A tar that ends without its end mark has been cut short.
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise tarfile.ReadError('no end mark')
  if links:
    # A file with two names is packed once.
    place = {_plain(name): where for name, *where in members}
    for name, of in links:
      if where := place.get(_plain(of)):
        members.append((name, *where))
      else:
        left.append(name)
  return members, folders, left
