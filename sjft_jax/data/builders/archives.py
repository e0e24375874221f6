"""What the builders share: features, and archives in the manual directory."""

import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from sjft_jax.errors import UserError

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


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
  paths = [pathlib.Path(manual_dir) / name for name in names]
  missing = [path.name for path in paths if not path.is_file()]
  if missing:
    raise UserError(
      f'Needed {", ".join(names)} in {manual_dir}; {", ".join(missing)} is not'
      ' there: get it, or correct --manual_dir.'
    )
  return paths


def read(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """Yields (name, bytes) of every regular file of an archive, in its order.

  A tar, compressed or not, is read once from its beginning to its end: neither
  memory nor disk is needed for what it holds.

  Args:
    path: of a zip, tar or tar.gz file, told by its content.

  Raises:
    UserError: if it is damaged or incomplete.
  """
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
          if not member.is_dir():
            yield member.filename, archive.read(member)
    else:
      with tarfile.open(path, 'r|*') as archive:
        for member in archive:
          if member.isreg():
            yield member.name, archive.extractfile(member).read()
          archive.members.clear()  # It keeps them all.
  except _DAMAGE as e:
    raise UserError(
      f'{path} is damaged or incomplete ({e or type(e).__name__}): get it'
      ' again.'
    ) from e


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
