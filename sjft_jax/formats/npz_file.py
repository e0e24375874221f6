"""Arrays of a NumPy archive."""

import zipfile
import zlib

import numpy as np

from sjft_jax.errors import UserError

# Weights hardly shrink by compression; what grows more than this is a bomb.
_GROWTH = 100


def read(path: str) -> dict[str, np.ndarray]:
  """Reads an .npz file of plain arrays.

  Args:
    path: the file.

  Returns:
    {name: array}.

  Raises:
    UserError: if it is no such file; pickled objects are refused.
  """
  try:
    with open(path, 'rb') as file, zipfile.ZipFile(file) as archive:
      packed = file.seek(0, 2)
      if sum(x.file_size for x in archive.infolist()) > _GROWTH * packed:
        raise UserError(f'{path} would grow more than {_GROWTH} x: no weights.')
    with np.load(path, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from error
  except (
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise UserError(
      f'{path} is no .npz file of plain arrays, or a part of one.'
    ) from error
