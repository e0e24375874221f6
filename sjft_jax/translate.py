"""Other programs' names and layouts of weights, in those used here.

A source is recognised by its tensors. What cannot be seen in them, the input
they want, is known of the source.
"""

from collections.abc import Callable, Mapping

import numpy as np

from sjft_jax.errors import UserError
from sjft_jax.models import conv_bank
from sjft_jax.models.convention import CAFFE, CAFFE_MEAN_IMAGE, TORCHVISION
from sjft_jax.models.weight_files import HEAD, TRUNK, Weights, misfits

_PARAMS, _STATISTICS = TRUNK

# Name here -> (name there, function of the array there).
Table = Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def _flat(value):
  """A vector; Caffe's older files have axes of length 1 besides."""
  return value.reshape(-1)


def _hwio(value_oihw):
  """A convolution's kernel, from the layout of torch and Caffe."""
  return value_oihw.transpose(2, 3, 1, 0)


def alexnet_torchvision(tensors: Mapping[str, np.ndarray]) -> Weights:
  """The convolutions of torchvision's AlexNet; its classifier is left out."""
  table = {}
  for i, layer in enumerate((0, 3, 6, 8, 10), 1):
    table |= _conv(f'conv{i}', f'features.{layer}.weight')
    table |= _vector(f'{_PARAMS}conv{i}/bias', f'features.{layer}.bias')
  found = _apply(table, tensors, left_out='classifier.')
  return _fixed('alexnet_torchvision', TORCHVISION, found)


def alexnet_caffe(tensors: Mapping[str, np.ndarray]) -> Weights:
  """The convolutions of BVLC's AlexNet; its classifier is left out."""
  table = {}
  for i in range(1, 6):
    table |= _conv(f'conv{i}', f'conv{i}/0')
    table |= _vector(f'{_PARAMS}conv{i}/bias', f'conv{i}/1')
  found = _apply(table, tensors, left_out='fc')
  return _fixed('alexnet_caffe', CAFFE_MEAN_IMAGE, found)


def squeezenet_npz(tensors: Mapping[str, np.ndarray]) -> Weights:
  """SqueezeNet v1.0, as <layer>/W and <layer>/b; with its classifier."""
  table = _conv('conv1', 'conv1/W') | _vector(f'{_PARAMS}conv1/bias', 'conv1/b')
  for i in range(2, 10):
    for ours, theirs in (
      ('squeeze', 'conv1x1_1'),
      ('expand1', 'conv1x1_2'),
      ('expand3', 'conv3x3_2'),
    ):
      name = f'fire{i}_{ours}'
      table |= _conv(name, f'fire{i}/{theirs}/W')
      table |= _vector(f'{_PARAMS}{name}/bias', f'fire{i}/{theirs}/b')
  head = {
    f'{HEAD}kernel': ('conv_final/W', _hwio),
    f'{HEAD}bias': ('conv_final/b', _flat),
  }
  found = _apply(table | head, tensors)
  return _fixed('squeezenet_v1_0', CAFFE, found)


def _conv(name, theirs):
  return {f'{_PARAMS}{name}/kernel': (theirs, _hwio)}


def _vector(name, theirs):
  return {name: (theirs, _flat)}


def _apply(table: Table, tensors, left_out='\0') -> dict[str, np.ndarray]:
  """Renamed tensors; every one that is missing or unexpected is named."""
  expected = {theirs for theirs, _ in table.values()}
  wrong = [
    *(f'{name} is missing' for name in expected if name not in tensors),
    *(
      f'{name} is unexpected'
      for name in tensors
      if name not in expected and not name.startswith(left_out)
    ),
  ]
  if wrong:
    raise UserError(f'The tensors do not fit: {"; ".join(sorted(wrong))}.')
  found = {}
  for ours, (theirs, change) in table.items():
    try:
      found[ours] = change(np.asarray(tensors[theirs], np.float32))
    except ValueError as error:
      raise UserError(
        f'{theirs} cannot be {ours}: it is {list(tensors[theirs].shape)}.'
      ) from error
  return found


def _fixed(network, convention, found):
  """Weights of a network whose every shape is known."""
  wanted = conv_bank.tensor_shapes(conv_bank.NETWORKS[network])
  trunk = {k: v for k, v in found.items() if not k.startswith(HEAD)}
  if wrong := misfits(trunk, wanted):
    raise UserError(f'This is no {network}: {"; ".join(wrong)}.')
  return Weights(network=network, convention=convention, tensors=found)
