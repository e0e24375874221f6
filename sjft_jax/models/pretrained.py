"""Weights of a trunk in a file; one that does not fit is refused."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from sjft_jax.errors import UserError
from sjft_jax.models import weight_files
from sjft_jax.models.convention import Convention


def save(
  path: str | pathlib.PurePath,
  variables: Mapping,
  *,
  network: str,
  convention: Convention,
) -> None:
  """Writes the trunk's parameters and running averages, without the heads.

  Args:
    path: the file; it is there when it is whole.
    variables: 'params' and 'batch_stats' of a `TwoHeads`.
    network: what a reader calls it.
    convention: the input that it was trained on.
  """
  tensors = {
    name: np.asarray(value)
    for name, value in jax.device_get(_trunk(variables)).items()
  }
  weight_files.write(
    path,
    weight_files.Weights(
      network=network, convention=convention, tensors=tensors
    ),
  )


def load(
  path: str | pathlib.PurePath, variables: Mapping, convention: Convention
) -> dict:
  """Puts the trunk of a file in place; the heads stay freshly initialised.

  Args:
    path: a file written by `save` or by `sjft_jax.convert`.
    variables: 'params' and 'batch_stats' of a `TwoHeads`.
    convention: the input that the network is fed.

  Returns:
    Variables with the dtypes and shardings of those that came.

  Raises:
    UserError: if the file is not readable, was trained on another input, or
      has other tensors than the trunk; every misfit is named.
  """
  weights = weight_files.read(path)
  if weights.convention != convention:
    raise UserError(
      f'The network is fed {convention}; the weights in {path} were trained '
      f'on {weights.convention}.'
    )
  wanted = _trunk(variables)
  # A classifier of other classes is no use here.
  found = {
    name: value
    for name, value in weights.tensors.items()
    if not name.startswith(weight_files.HEAD)
  }
  misfits = weight_files.misfits(
    found, {name: value.shape for name, value in wanted.items()}
  )
  if misfits:
    raise UserError(
      f'The weights in {path} are of another network ({weights.network}): '
      f'{"; ".join(misfits)}. Set model.trunk, model.variant, model.width and '
      'model.stem as they were in training.'
    )

  def place(name, like):
    x = found[name].astype(like.dtype)
    return jax.make_array_from_callback(
      x.shape, like.sharding, lambda at: x[at]
    )

  trunk = {name: place(name, value) for name, value in wanted.items()}
  flat = traverse_util.flatten_dict(variables, sep='/')
  return dict(variables) | traverse_util.unflatten_dict(flat | trunk, sep='/')


def _trunk(variables):
  """The trunk's arrays by name: params/trunk/conv1/kernel and so on."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {
    name: value
    for name, value in flat.items()
    if name.startswith(weight_files.TRUNK)
  }
