"""Weights as safetensors that say what they are and what input they want.

Tensors are named as in the variables of the network that is trained:
params/trunk/conv1/kernel, batch_stats/trunk/norm1/mean and so on. A classifier
that came with them is params/head/kernel and params/head/bias.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode

from sjft_jax import files, paths
from sjft_jax.errors import UserError
from sjft_jax.models.convention import Convention

TRUNK = 'params/trunk/', 'batch_stats/trunk/'
HEAD = 'params/head/'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """A network's arrays, and what must be known to use them.

  Attributes:
    network: which network they are of.
    convention: the input they were trained on.
    tensors: name -> array.
    origin: what else is known of them, as text: source, sha256.
  """

  network: str
  convention: Convention
  tensors: Mapping[str, np.ndarray]
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(path: str | pathlib.PurePath, weights: Weights) -> None:
  """Writes a weight file; it is there when it is whole."""
  tensors = {
    name: np.asarray(value, order='C')
    for name, value in weights.tensors.items()
  }
  metadata = dict(weights.origin) | {
    'network': weights.network,
    'input': weights.convention.encode(),
  }
  with files.replacing(path) as file:
    file.write(encode(tensors, metadata))


def read(path: str | pathlib.PurePath) -> Weights:
  """Reads a weight file.

  Args:
    path: a file that `write` wrote.

  Returns:
    The weights.

  Raises:
    UserError: if the file is not readable, or does not say what network it is
      of and what input it wants.
  """
  weights, tensors = _open(path, lambda file: file.keys())
  return dataclasses.replace(weights, tensors=tensors)


def convention(path: str | pathlib.PurePath) -> Convention:
  """The input that the weights of a file want; raises as `read`."""
  return _open(path, lambda file: ())[0].convention


def _open(path, names):
  """(weights without tensors, the tensors of these names)."""
  # That of safetensors does not say which file is absent.
  if not paths.path(path).is_file():
    raise UserError(f'No weights can be read from {path}: it is no file.')
  try:
    with files.on_disk(path) as found, safe_open(found, 'numpy') as file:
      metadata = dict(file.metadata() or {})
      tensors = {name: file.get_tensor(name) for name in names(file)}
  except (OSError, SafetensorError, TypeError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'No weights can be read from {path}: {reason}. Files of other programs '
      'are converted first: python -m sjft_jax.convert --help'
    ) from error
  missing = [key for key in ('network', 'input') if key not in metadata]
  if missing:
    raise UserError(
      f'The weights in {path} do not say their {" and ".join(missing)}. '
      'Write them by python -m sjft_jax.convert.'
    )
  try:
    wanted = Convention.decode(metadata.pop('input'))
  except ValueError as error:
    raise UserError(
      f'The weights in {path} do not say in a known way what input they want: '
      f'{error}. Write them by python -m sjft_jax.convert.'
    ) from error
  weights = Weights(
    network=metadata.pop('network'),
    convention=wanted,
    tensors={},
    origin=metadata,
  )
  return weights, tensors


def misfits(
  tensors: Mapping[str, np.ndarray],
  wanted: Mapping[str, tuple[int, ...]],
  known: Iterable[str] = (),
) -> list[str]:
  """Every tensor that does not fit, each with what is wrong with it.

  Args:
    tensors: what came.
    wanted: name -> shape of what is needed.
    known: names of others that may be there.

  Returns:
    One text per tensor that is missing, unexpected or of another shape.
  """
  return [
    *(f'{name} is missing' for name in wanted if name not in tensors),
    *(
      f'{name} is unexpected'
      for name in tensors
      if name not in wanted and name not in known
    ),
    *(
      f'{name} is {list(tensors[name].shape)} instead of {list(shape)}'
      for name, shape in wanted.items()
      if name in tensors and tensors[name].shape != tuple(shape)
    ),
  ]
