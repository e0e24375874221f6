"""Other programs' names and layouts of weights, in those used here.

A source is recognised by its tensors. What cannot be seen in them, the input
they want, is known of the source.
"""

import functools
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import traverse_util

from sjft_jax.errors import UserError
from sjft_jax.models import bit, conv_bank, resnet
from sjft_jax.models.convention import (
  BIT,
  CAFFE,
  CAFFE_MEAN_IMAGE,
  TORCHVISION,
)
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


def resnet_torch(tensors: Mapping[str, np.ndarray]) -> Weights:
  """ResNet v1.5 as torchvision and timm name it; with its classifier."""
  labels = {
    stage: _labels(tensors, rf'layer{stage - 1}\.(\d+)\.conv1\.weight')
    for stage in range(2, 6)
  }
  table = _conv('conv1', 'conv1.weight') | _torch_norm('norm1', 'bn1')
  for stage, block, label in _blocks(labels):
    ours, theirs = f'res{stage}_{block}', f'layer{stage - 1}.{label}'
    for i, part in enumerate('abc', 1):
      conv = _conv if part == 'b' else _pointwise
      table |= conv(f'{ours}/branch2{part}', f'{theirs}.conv{i}.weight')
      table |= _torch_norm(f'{ours}/norm2{part}', f'{theirs}.bn{i}')
    if block == 0:
      table |= _pointwise(f'{ours}/branch1', f'{theirs}.downsample.0.weight')
      table |= _torch_norm(f'{ours}/norm1', f'{theirs}.downsample.1')
  head = {
    f'{HEAD}kernel': ('fc.weight', np.transpose),
    f'{HEAD}bias': ('fc.bias', _flat),
  }
  counters = {k: v for k, v in tensors.items() if 'num_batches_tracked' in k}
  rest = {k: v for k, v in tensors.items() if k not in counters}
  found = _apply(table | head, rest)
  for name in [k for k in found if k.endswith('/mean')]:
    # What the weight of Caffe's averages settles at.
    found[f'{name.removesuffix("mean")}weight'] = np.float32(1000)
  return _trunk(
    labels, resnet.TRUNKS, 'v1.5', TORCHVISION, found, variant='v1.5'
  )


def resnet_caffe(tensors: Mapping[str, np.ndarray]) -> Weights:
  """The release's ResNet with identity mappings; classifiers are left out.

  Caffe keeps averages as sums, beside the factor to divide them by; scale and
  bias are a layer of their own. The normalisation after a sum is named here
  after the block that reads the sum.

  Source: the released train_val.prototxt.
  """
  labels = {
    stage: _labels(tensors, rf'res{stage}([a-z]\d*)_branch2a/0')
    for stage in range(2, 6)
  }
  table = _conv('conv1', 'conv1/0')
  norms = {'norm1': '_conv1'}
  reader = 'norm5'
  for stage, block, label in reversed(list(_blocks(labels))):
    ours, theirs = f'res{stage}_{block}', f'{stage}{label}'
    norms[reader] = theirs
    reader = f'{ours}/norm'
    for part in 'abc':
      conv = _conv if part == 'b' else _pointwise
      table |= conv(f'{ours}/branch2{part}', f'res{theirs}_branch2{part}/0')
      if part != 'c':
        norms[f'{ours}/norm2{part}'] = f'{theirs}_branch2{part}'
    if block == 0:
      table |= _pointwise(f'{ours}/branch1', f'res{theirs}_branch1/0')
  sums = {}
  for ours, theirs in norms.items():
    table |= _vector(f'{_PARAMS}{ours}/scale', f'scale{theirs}/0')
    table |= _vector(f'{_PARAMS}{ours}/bias', f'scale{theirs}/1')
    for i, name in enumerate(('mean', 'var', 'weight')):
      table |= _vector(f'{_STATISTICS}{ours}/{name}', f'bn{theirs}/{i}')
    sums[f'{_STATISTICS}{ours}/'] = f'bn{theirs}'
  found = _apply(table, tensors, left_out='fc')
  for prefix, theirs in sums.items():
    factor = found[f'{prefix}weight']
    if factor.shape != (1,) or not factor > 0:
      raise UserError(f'{theirs} has a factor of {factor}: it saw no images.')
    for name in ('mean', 'var'):
      found[prefix + name] = found[prefix + name] / factor
    found[f'{prefix}weight'] = factor[0]
  return _trunk(labels, resnet.TRUNKS, 'caffe', CAFFE, found, variant='caffe')


def bit_npz(tensors: Mapping[str, np.ndarray]) -> Weights:
  """BiT's ResNet of any width as its authors name it; with its classifier."""
  labels = {
    stage: _labels(
      tensors,
      rf'resnet/block{stage - 1}/unit(\d+)/a/standardized_conv2d/kernel',
    )
    for stage in range(2, 6)
  }

  def norm(name, theirs):
    return {
      **_vector(f'{_PARAMS}{name}/scale', f'{theirs}/group_norm/gamma'),
      **_vector(f'{_PARAMS}{name}/bias', f'{theirs}/group_norm/beta'),
    }

  def conv(name, theirs, change):
    theirs = f'{theirs}/standardized_conv2d/kernel'
    return {f'{_PARAMS}{name}/kernel': (theirs, change)}

  table = conv('conv1', 'resnet/root_block', np.asarray)
  table |= norm('norm5', 'resnet')
  for stage, block, label in _blocks(labels):
    ours, theirs = f'res{stage}_{block}', f'resnet/block{stage - 1}/unit{label}'
    for part, name in zip('abc', ('norm', 'norm2a', 'norm2b'), strict=True):
      change = np.asarray if part == 'b' else _only_tap
      table |= conv(f'{ours}/branch2{part}', f'{theirs}/{part}', change)
      table |= norm(f'{ours}/{name}', f'{theirs}/{part}')
    if block == 0:
      table |= conv(f'{ours}/branch1', f'{theirs}/a/proj', _only_tap)
  head = {
    f'{HEAD}kernel': ('resnet/head/conv2d/kernel', _only_tap),
    f'{HEAD}bias': ('resnet/head/conv2d/bias', _flat),
  }
  found = _apply(table | head, tensors)
  width = found[f'{_PARAMS}conv1/kernel'].shape[-1] / 64
  return _trunk(labels, bit.TRUNKS, f'x{width:g}', BIT, found, width=width)


def _only_tap(value_hwio):
  """A 1 x 1 convolution's kernel as a matrix."""
  if value_hwio.shape[:2] != (1, 1):
    raise ValueError(f'not 1 x 1: {value_hwio.shape}')
  return value_hwio[0, 0]


def _labels(tensors, pattern):
  """What the pattern captures, in the order of letters, then of numbers."""
  found = (re.fullmatch(pattern, name) for name in tensors)
  return sorted(
    (match[1] for match in found if match),
    key=lambda label: (label.rstrip('0123456789'), len(label), label),
  )


def _blocks(labels):
  """(stage, position, label) of every block, from the input up."""
  for stage, some in labels.items():
    for block, label in enumerate(some):
      yield stage, block, label


def _pointwise(name, theirs):
  """A 1 x 1 convolution is a product here."""
  return {f'{_PARAMS}{name}/kernel': (theirs, lambda x: _hwio(x)[0, 0])}


def _torch_norm(name, theirs):
  return {
    **_vector(f'{_PARAMS}{name}/scale', f'{theirs}.weight'),
    **_vector(f'{_PARAMS}{name}/bias', f'{theirs}.bias'),
    **_vector(f'{_STATISTICS}{name}/mean', f'{theirs}.running_mean'),
    **_vector(f'{_STATISTICS}{name}/var', f'{theirs}.running_var'),
  }


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


def _trunk(labels, trunks, kind, convention, found, **settings):
  """Weights of a residual trunk of this many blocks."""
  sizes = tuple(len(some) for some in labels.values())
  names = {make().stage_sizes: name for name, make in trunks.items()}
  if sizes not in names:
    raise UserError(f'No trunk has {sizes} blocks in its stages.')
  name = names[sizes]
  trunk = {k: v for k, v in found.items() if not k.startswith(HEAD)}
  if wrong := misfits(trunk, _trunk_shapes(trunks[name](**settings))):
    raise UserError(f'This is no {name} {kind}: {"; ".join(wrong)}.')
  return Weights(network=f'{name} {kind}', convention=convention, tensors=found)


def _trunk_shapes(trunk):
  """{tensor: shape} of a residual trunk."""
  shapes = jax.eval_shape(
    functools.partial(trunk.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32),
  )
  return {
    f'{kind}/trunk/{name}': value.shape
    for kind, tree in shapes.items()
    for name, value in traverse_util.flatten_dict(tree, sep='/').items()
  }
