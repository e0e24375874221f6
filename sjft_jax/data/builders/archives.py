"""What the builders share: features, and archives in the manual directory."""

import contextlib
import hashlib
import io
import pathlib
import tarfile
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from sjft_jax import paths, progress
from sjft_jax.data import packs
from sjft_jax.errors import UserError

# Of an encrypted member zipfile says it by a RuntimeError.
_DAMAGE = (*packs.DAMAGE, RuntimeError)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set whose archives are put into the manual directory by hand.

  Attributes:
    COUNTS: split -> number of images.
    DIGESTS: archive -> its published MD5 or SHA-256, in hex, if there is one.
  """

  COUNTS: Mapping[str, int] = types.MappingProxyType({})
  DIGESTS: Mapping[str, str] = types.MappingProxyType({})

  def splits(self, manual_dir) -> dict[str, Iterator]:
    """{split: generator of (key, example)}, in the order of the archives.

    Raises:
      UserError: here or in a generator, if an archive is missing, damaged or
        incomplete, or cannot be read now.
    """
    return self._splits(manual_dir)

  def _splits(self, manual_dir):
    raise NotImplementedError

  def _split_generators(self, dl_manager):
    return self._splits(dl_manager.manual_dir)


def published(builder_class) -> Mapping[str, str]:
  """SHA-256 of the archives of a set that TFDS has, as TFDS states them."""
  return types.MappingProxyType(
    {
      url.rpartition('/')[2]: info.checksum
      for url, info in builder_class.url_infos.items()
    }
  )


def info(builder, label, *, homepage, citation) -> tfds.core.DatasetInfo:
  """What TFDS wants to know of a set of images with labels and file names."""
  return tfds.core.DatasetInfo(
    builder=builder,
    description=builder.__doc__,
    homepage=homepage,
    citation=citation,
    features=tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(),
        'label': label,
        'file_name': tfds.features.Text(),
      }
    ),
  )


def example(name: str, label: str, data: bytes):
  """A record and its key."""
  return name, {'image': data, 'label': label, 'file_name': name}


def find(manual_dir, *names: str) -> list[pathlib.Path]:
  """Paths of files that must lie in the manual directory.

  Raises:
    UserError: if one is missing.
  """
  found = [pathlib.Path(manual_dir) / name for name in names]
  with reading(manual_dir):
    missing = [path.name for path in found if not path.is_file()]
  if missing:
    raise UserError(
      f'Needed {", ".join(names)} in {manual_dir}; {", ".join(missing)} is not'
      ' there: get it, or correct --manual_dir.'
    )
  return found


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Says in one line that an archive is damaged, or its disk away."""
  try:
    yield
  except _DAMAGE as e:
    raise damaged(path, e) from e


@contextlib.contextmanager
def parsing(path: pathlib.Path) -> Iterator[None]:
  """Says in one line that a list, or one in an archive, is not what it was."""
  try:
    yield
  except (ValueError, LookupError) as e:
    raise damaged(path, e) from e


def read_whole(path: pathlib.Path) -> bytes:
  """The bytes of a small file of the manual directory.

  Raises:
    UserError: if it cannot be read now.
  """
  with reading(path):
    return path.read_bytes()


def read(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """Yields (name, bytes) of every regular file of an archive, in its order.

  A tar, compressed or not, is read once from its beginning to its end: neither
  memory nor disk is needed for what it holds.

  Args:
    path: of a zip, tar or tar.gz file, told by its content.

  Raises:
    UserError: if it is damaged or incomplete, or cannot be read now.
  """
  with reading(path), path.open('rb') as file:
    if _is_zip(file):
      with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
          if not member.is_dir():
            yield member.filename, archive.read(member)
    else:
      file.seek(0)
      with tarfile.open(fileobj=file, mode='r|*') as archive:
        yield from _members(archive)


def _is_zip(file) -> bool:
  try:
    zipfile.ZipFile(file).close()
  except zipfile.BadZipFile as e:
    # It says so of a file, too, whose end the disk does not give.
    if paths.cause(e):
      raise
    return False
  return True


def damaged(path: pathlib.Path, why: Exception) -> UserError:
  """What to say of a file that cannot be read: now, or ever."""
  if fault := paths.cause(why):
    return paths.unreadable(path, fault)
  return UserError(
    f'{path} is damaged or incomplete ({why or type(why).__name__}): get it'
    ' again.'
  )


def read_mat(data: bytes, path: pathlib.Path, *names: str) -> dict:
  """Arrays of a MATLAB file, without dimensions of one.

  Args:
    data: the file.
    path: where it lies, or the archive that it is from.
    *names: what it must hold.

  Raises:
    UserError: if it is damaged or lacks one.
  """
  try:
    values = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)
    return {name: np.atleast_1d(values[name]) for name in names}
  # Anything may come out of a file that is cut or none.
  except Exception as e:
    raise damaged(path, e) from e


def read_inner(data: bytes, path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """Yields what `read` does, of a tar that lies in the archive `path`."""
  with (
    reading(path),
    tarfile.open(fileobj=io.BytesIO(data), mode='r:') as archive,
  ):
    yield from _members(archive)


def _members(archive):
  for member in archive:
    if member.isreg():
      yield member.name, archive.extractfile(member).read()
    archive.members.clear()  # It keeps them all.


def check_digest(path: pathlib.Path, needed: str) -> None:
  """Refuses a file whose MD5 or SHA-256, told by its length, is another.

  Raises:
    UserError: if it is, or if it cannot be read now.
  """
  sha = hashlib.new('md5' if len(needed) == 32 else 'sha256')
  with reading(path):
    size, file = path.stat().st_size, path.open('rb')
  # What the bar's terminal refuses is no fault of the archive.
  with file, progress.bar(size, f'digest of {path.name}', 'B') as bar:
    while True:
      with reading(path):
        data = file.read(1 << 22)
      if not data:
        break
      sha.update(data)
      bar.update(len(data))
  if sha.hexdigest() != needed:
    raise UserError(
      f'Needed the published {path.name} ({sha.name} {needed}); {path} has '
      f'{sha.hexdigest()}: it is damaged, incomplete or another version. Get '
      'it again, or take it as it is with --skip_digests.'
    )


def check(what: str, found: int, expected: int, path: pathlib.Path) -> None:
  """Refuses an archive or list that holds fewer or more than it should.

  Raises:
    UserError: if it does.
  """
  if found != expected:
    raise UserError(
      f'Needed {expected} {what} in {path}; it holds {found}: it is incomplete,'
      ' or another version. Get it again.'
    )


def check_known(
  what: str, found: Iterable, known: Iterable, path: pathlib.Path
) -> None:
  """Refuses a list that names what is not there.

  Args:
    what: they are.
    found: numbers or names of the list.
    known: those there are.
    path: of the list, or the archive that it is from.

  Raises:
    UserError: if one is not among those there are.
  """
  known = frozenset(known)
  unknown = [x for x in found if x not in known]
  if unknown:
    raise UserError(
      f'Needed {what} of the set in {path}; it names {unknown[0]!r}, which is'
      f' none of {len(known)}: it is damaged, or another version. Get it again.'
    )


def check_all_seen(missing, archive: pathlib.Path) -> None:
  """Refuses an archive that lacks images which its lists name.

  Raises:
    UserError: if it does.
  """
  if missing:
    raise UserError(
      f'{archive} lacks {len(missing)} of the images that its lists name, such'
      f' as {min(missing)}: it is incomplete. Get it again.'
    )
