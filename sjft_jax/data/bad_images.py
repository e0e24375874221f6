"""The record of images that could not be used."""

import csv
import pathlib
from collections.abc import Iterable

from sjft_jax import errors, files


def record(
  path: pathlib.Path,
  bad: Iterable[tuple[str, str]],
  *,
  total: int,
  max_fraction: float,
) -> None:
  """Adds to the list of bad images, and stops a run that has too many.

  Args:
    path: the csv, columns id and reason; what it lists already is kept. It is
      not made for nothing.
    bad: (id, reason) of the bad images of one set.
    total: number of images in that set.
    max_fraction: the largest share of bad images a run goes on with, 0..1.

  Raises:
    UserError: if more than max_fraction of the set is bad; the csv is written
      first.
  """
  new = dict(bad)
  if not new:
    return
  rows = sorted((read(path) | new).items())
  files.write_csv(path, ('id', 'reason'), rows)
  if len(new) > max_fraction * total:
    raise errors.UserError(
      f'At most {max_fraction:.2%} of the images may be bad (max_bad_fraction);'
      f' {len(new)} of {total} are, listed in {path}: raise'
      ' --config.max_bad_fraction, or repair or remove them and choose another'
      ' --workdir.'
    )


def read(path: pathlib.Path) -> dict[str, str]:
  """Reads what `record` wrote: {id: reason}; empty where there is no file.

  Args:
    path: the csv.
  """
  if not path.exists():
    return {}
  with files.opened_text(path) as file:
    return {row['id']: row['reason'] for row in csv.DictReader(file)}
