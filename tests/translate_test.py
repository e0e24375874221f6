import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from sjft_jax import convert, translate
from sjft_jax.errors import UserError
from sjft_jax.models import bit, resnet
from sjft_jax.models.convention import BIT, CAFFE, TORCHVISION
from tests.parity import weights

PARITY = pathlib.Path(__file__).parent / 'parity'


def feature(made, trunk, image):
  """The pooled feature of images, by the weights as they are stored."""
  variables = traverse_util.unflatten_dict(
    {
      name.replace('trunk/', ''): value
      for name, value in made.tensors.items()
      if '/trunk/' in name
    },
    sep='/',
  )
  apply = jax.jit(lambda v, x: trunk.apply(v, made.convention(x), train=False))
  return np.float64(apply(variables, image))


def assert_near(found, expected, most=1e-5):
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error < most, error


def test_torchvision_resnet152_equals_torchvision():
  fixture = np.load(PARITY / 'resnet152_torchvision.npz')
  made = translate.resnet_torch(weights.fixture_state(fixture))
  assert (made.network, made.convention) == ('resnet152 v1.5', TORCHVISION)
  trunk = resnet.TRUNKS['resnet152'](variant='v1.5')
  found = feature(made, trunk, weights.random_image(2, 75, 64, 3))
  assert_near(found, fixture['feature'])
  kernel, bias = (made.tensors[f'params/head/{k}'] for k in ('kernel', 'bias'))
  assert_near(found @ kernel + bias, fixture['logits'])


def test_bit_equals_timm(tmp_path):
  fixture = np.load(PARITY / 'bit_r50.npz')
  path = tmp_path / 'bit.npz'
  np.savez(path, **weights.fixture_state(fixture))
  made = convert.convert('bit', str(path))
  assert (made.network, made.convention) == ('bit_r50 x1', BIT)
  found = feature(
    made, bit.TRUNKS['bit_r50'](), weights.random_image(2, 75, 64, 3)
  )
  # Every normalisation magnifies rounding: timm's own float32 is 2e-5 off.
  assert_near(found, fixture['feature'], 3e-5)
  kernel, bias = (made.tensors[f'params/head/{k}'] for k in ('kernel', 'bias'))
  assert_near(found @ kernel + bias, fixture['logits'], 3e-5)


def test_a_wider_bit_is_known_by_its_first_kernels():
  shapes = weights.fixture_shapes(np.load(PARITY / 'bit_r50.npz'))
  state = {
    name: np.zeros([n if n in (1, 3, 7) else 2 * n for n in shape], 'f')
    for name, shape in shapes.items()
  }
  assert translate.bit_npz(state).network == 'bit_r50 x2'
  state['resnet/block2/unit01/b/group_norm/gamma'] = np.zeros(128, 'f')
  with pytest.raises(UserError, match=r'norm2a/scale is \[128\] instead'):
    translate.bit_npz(state)


def test_the_release_network_equals_its_description():
  fixture = np.load(PARITY / 'resnet26_caffe.npz')
  state = weights.fixture_state(fixture, weights.random_caffe_state)
  made = translate.resnet_caffe(state)
  assert (made.network, made.convention) == ('resnet26 caffe', CAFFE)
  trunk = resnet.TRUNKS['resnet26'](variant='caffe')
  found = feature(made, trunk, weights.random_image(2, 75, 64, 3))
  assert_near(found, fixture['feature'])


def release(label_of_block):
  """{blob: shape} of the released ResNet-152, without its classifiers."""
  shapes = {'conv1/0': (64, 3, 7, 7)}
  norms = {'_conv1': 64}
  below = 64
  for stage, blocks in zip((2, 3, 4, 5), (3, 8, 36, 3), strict=True):
    c = 2 ** (stage + 4)
    for block in range(blocks):
      name = f'{stage}{label_of_block(blocks, block)}'
      if block == 0:
        shapes[f'res{name}_branch1/0'] = 4 * c, below, 1, 1
      shapes[f'res{name}_branch2a/0'] = c, below, 1, 1
      shapes[f'res{name}_branch2b/0'] = c, c, 3, 3
      shapes[f'res{name}_branch2c/0'] = 4 * c, c, 1, 1
      norms |= {f'{name}_branch2a': c, f'{name}_branch2b': c, name: 4 * c}
      below = 4 * c
  convolutions = len(shapes)
  for name, c in norms.items():
    shapes |= {f'bn{name}/{i}': (c,) for i in (0, 1)} | {f'bn{name}/2': (1,)}
    shapes |= {f'scale{name}/{i}': (c,) for i in (0, 1)}
  return shapes, convolutions, len(norms)


def ones(shapes):
  """Arrays of ones that take no room."""
  return {k: np.broadcast_to(np.float32(1), v) for k, v in shapes.items()}


def test_the_release_resnet152_fits_name_by_name():
  # res2a, b, c; res3a, b1..b7; res4a, b1..b35; res5a, b, c.
  shapes, convolutions, norms = release(
    lambda blocks, i: 'abc'[i] if blocks == 3 else f'b{i}' if i else 'a'
  )
  assert (convolutions, norms) == (155, 151)
  made = translate.resnet_caffe(ones(shapes) | {'fc67/0': np.zeros((67, 2048))})
  assert made.network == 'resnet152 caffe'
  assert len(made.tensors) == len(shapes)
  # The normalisation of a sum belongs to the block that reads it.
  marked = ones(shapes) | {'scale4b35/1': np.arange(1024, dtype=np.float32)}
  bias = translate.resnet_caffe(marked).tensors['params/trunk/res5_0/norm/bias']
  np.testing.assert_array_equal(bias, np.arange(1024))


def test_the_factor_divides_the_sums():
  shapes, _, _ = release(lambda blocks, i: 'abc'[i] if blocks == 3 else f'b{i}')
  state = ones(shapes)
  state['bn2a/0'] = np.full(256, 6, np.float32)
  state['bn2a/2'] = np.array([4], np.float32)
  found = translate.resnet_caffe(state).tensors
  prefix = 'batch_stats/trunk/res2_1/norm/'
  assert np.all(found[f'{prefix}mean'] == 1.5)
  assert np.all(found[f'{prefix}var'] == 0.25)
  assert found[f'{prefix}weight'] == 4
  state['bn2a/2'] = np.zeros(1, np.float32)
  with pytest.raises(UserError, match='bn2a has a factor of'):
    translate.resnet_caffe(state)


def test_every_misfit_is_named():
  state = weights.fixture_state(np.load(PARITY / 'alexnet_torchvision.npz'))
  state['classifier.1.weight'] = np.zeros((2, 2))
  assert len(translate.alexnet_torchvision(state).tensors) == 10
  with pytest.raises(UserError, match=r'conv2/kernel is .* instead of'):
    translate.alexnet_torchvision(
      state | {'features.3.weight': np.zeros((192, 64, 3, 3))}
    )
  with pytest.raises(UserError, match=r'features.3.weight cannot be'):
    translate.alexnet_torchvision(state | {'features.3.weight': np.zeros(3)})
  del state['features.3.weight'], state['features.10.bias']
  state['features.4.weight'] = np.zeros(3)
  with pytest.raises(UserError) as caught:
    translate.alexnet_torchvision(state)
  assert str(caught.value) == (
    'The tensors do not fit: features.10.bias is missing; features.3.weight is '
    'missing; features.4.weight is unexpected.'
  )


def test_a_resnet_of_other_kernels_is_refused():
  fixture = np.load(PARITY / 'resnet152_torchvision.npz')
  shapes = weights.fixture_shapes(fixture)
  # ResNeXt has the names of ResNet, and grouped kernels.
  shapes['layer1.0.conv2.weight'] = 64, 4, 3, 3
  with pytest.raises(UserError, match=r'This is no resnet152 v1.5: .*branch2b'):
    translate.resnet_torch(ones(shapes))
  short = {k: v for k, v in shapes.items() if not k.startswith('layer2.7')}
  with pytest.raises(UserError, match=r'No trunk has \(3, 7, 36, 3\) blocks'):
    translate.resnet_torch(ones(short))
