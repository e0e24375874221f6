"""A finished run's network, to be asked about new images."""

import functools

import numpy as np

from sjft_jax import (
  evaluate,
  files,
  learn,
  paths,
  round_files,
  selection,
  workdirs,
)
from sjft_jax.errors import UserError


class Trained:
  """A run's network, to be asked about new images.

  Args:
    workdir: directory of a run with at least one finished round.
    mesh: the devices.

  Raises:
    UserError: if there is no such run or round.
  """

  def __init__(self, workdir, mesh):
    workdir = paths.path(workdir)
    self.classes = classes(workdir)
    self.settings = workdirs.settings_of(workdir)
    data = files.read_json(workdir / 'data.json')
    source = data.get('source', {}).get('classes', ())
    kept = files.read_json(workdir / selection.SOURCE_CLASSES, source)
    self._learner = learn.Learner(
      self.settings, len(self.classes), len(kept), mesh, workdir
    )
    begun = round_files.directories(workdir)
    self._rounds = list(filter(round_files.finished, begun))
    if not self.settings.rounds:
      raise UserError(
        f'{workdir} holds a selection alone (rounds=0), so there is no network '
        'to ask. Train one: rounds >= 1, in another --workdir.'
      )
    if not self._rounds:
      raise UserError(f'{workdir} has no finished round yet; let it run on.')
    self._distilled = workdir / round_files.DISTILLED

  @functools.cached_property
  def _one(self):
    if round_files.answered(self._distilled):
      return self._learner.restore(self._distilled, distilled=True)
    return self._learner.restore(self._rounds[-1])

  @functools.cached_property
  def _variables(self):
    return [self._learner.restore(path) for path in self._rounds]

  def probabilities(self, image_nhwc, *, fuse):
    """Class probabilities of uint8 crops, by one network or the average.

    The one is the distilled network, where there is one, or the last round's.

    Args:
      image_nhwc: RGB, uint8 [n, crop, crop, 3].
      fuse: average the class probabilities of all rounds.

    Returns:
      float [n, classes].
    """
    chosen = self._variables if fuse else [self._one]
    return evaluate.fuse(
      [np.asarray(self._learner.probabilities(v, image_nhwc)) for v in chosen]
    )


def classes(workdir):
  """The target's class names of a run.

  Raises:
    UserError: if the directory is not that of a single run.
  """
  path = paths.path(workdir) / 'data.json'
  if not path.exists():
    raise UserError(
      f'{workdir} is not the directory of a run; of a comparison, give one of '
      'its runs/<arm>-<seed>.'
    )
  return tuple(files.read_json(path)['target']['classes'])
