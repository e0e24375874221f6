"""Weights of a trunk as safetensors; a file that does not fit is refused."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode

from sjft_jax import files
from sjft_jax.errors import UserError
from sjft_jax.models import two_heads


def save(
  path: str | pathlib.Path,
  variables: Mapping,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes the trunk's parameters and running averages, without the heads.

  Args:
    path: the file; it is there when it is whole.
    variables: 'params' and 'batch_stats' of a `TwoHeads`.
    metadata: what a reader should know besides the input convention.
  """
  tensors = {
    name: np.asarray(value, order='C')
    for name, value in jax.device_get(_trunk(variables)).items()
  }
  with files.replacing(path) as file:
    file.write(encode(tensors, dict(metadata or {}, input=two_heads.INPUT)))


def load(path: str | pathlib.Path, variables: Mapping) -> dict:
  """Puts the trunk of a file in place; the heads stay as they are.

  Args:
    path: a file written by `save`.
    variables: 'params' and 'batch_stats' of a `TwoHeads`.

  Returns:
    Variables with the dtypes and shardings of those that came.

  Raises:
    UserError: if the file is not readable, was trained on another input, or
      has other tensors than the trunk; every misfit is named.
  """
  try:
    with safe_open(path, 'numpy') as file:
      convention = (file.metadata() or {}).get('input', 'an unknown input')
      found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (OSError, SafetensorError) as e:
    raise UserError(f'No weights can be read from {path}: {e}.') from e
  if convention != two_heads.INPUT:
    raise UserError(
      f'The network is fed {two_heads.INPUT}; the weights in {path} were '
      f'trained on {convention}. Convert them.'
    )
  wanted = _trunk(variables)
  misfits = [
    *(f'{name} is missing' for name in wanted if name not in found),
    *(f'{name} is unexpected' for name in found if name not in wanted),
    *(
      f'{name} is {list(found[name].shape)} instead of {list(value.shape)}'
      for name, value in wanted.items()
      if name in found and found[name].shape != value.shape
    ),
  ]
  if misfits:
    raise UserError(
      f'The weights in {path} are of another network: {"; ".join(misfits)}. '
      'Set model.trunk, model.width and model.stem as they were in training.'
    )
  trunk = {
    name: jax.device_put(found[name].astype(value.dtype), value.sharding)
    for name, value in wanted.items()
  }
  flat = traverse_util.flatten_dict(variables, sep='/')
  return dict(variables) | traverse_util.unflatten_dict(flat | trunk, sep='/')


def _trunk(variables):
  """The trunk's arrays by name: params/trunk/conv1/kernel and so on."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {
    name: value
    for name, value in flat.items()
    if name.startswith(('params/trunk/', 'batch_stats/trunk/'))
  }
