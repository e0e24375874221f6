import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from sjft_jax import translate
from sjft_jax.errors import UserError
from sjft_jax.models import conv_bank, weight_files
from sjft_jax.models.frozen import Conv, Fire, LocalNorm, Network, Pool
from sjft_jax.ops import groups
from tests.parity import weights

PARITY = pathlib.Path(__file__).parent.parent / 'parity'

# A narrow network with a layer of every kind.
SMALL = Network(
  (
    Conv('conv1', 6, 7, stride=2),
    LocalNorm(),
    Pool(ceil=True),
    Fire('fire2', 3, 4),
    Pool(ceil=False),
    Conv('conv3', 8, 3, padding=1, groups=2),
  ),
  default=('conv1',),
)


def narrow(network):
  """The network with an eighth of its features, and as many layers."""

  def layer(whole):
    if isinstance(whole, Fire):
      return Fire(whole.name, whole.squeeze // 8, whole.expand // 8)
    if isinstance(whole, Conv):
      return dataclasses.replace(whole, features=whole.features // 8)
    return whole

  return Network(tuple(map(layer, network.layers)), network.default)


NETWORKS = {'small': SMALL} | {
  name: narrow(network) for name, network in conv_bank.NETWORKS.items()
}
CONVENTIONS = {
  'small': translate.TORCHVISION,
  'alexnet_caffe': translate.CAFFE_MEAN_IMAGE,
  'alexnet_torchvision': translate.TORCHVISION,
  'squeezenet_v1_0': translate.CAFFE,
}


def random_weights(name, network=None, seed=0):
  """Weights whose responses have a spread of about 30 in every layer."""
  shapes = conv_bank.tensor_shapes(network or NETWORKS[name])
  rng = np.random.default_rng(seed)
  tensors = {}
  for tensor, shape in shapes.items():
    value = rng.normal(size=shape)
    value *= np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 10
    tensors[tensor] = value.astype(np.float32)
  return weight_files.Weights(
    network=name, convention=CONVENTIONS[name], tensors=tensors
  )


@pytest.fixture
def write(tmp_path):
  def write(what, path='weights.safetensors'):
    weight_files.write(tmp_path / path, what)
    return str(tmp_path / path)

  return write


load = functools.partial(conv_bank.load, networks=NETWORKS)


def convolve(x_nhwc, kernel_hwio, bias_o, layer):
  """float64, one tap at a time, one group after the other."""
  margin = (layer.padding,) * 2
  x_nhwc = np.pad(x_nhwc, ((0, 0), margin, margin, (0, 0)))
  rows, columns = (
    range(0, n - layer.size + 1, layer.stride) for n in x_nhwc.shape[1:3]
  )
  i, o = kernel_hwio.shape[2], layer.features // layer.groups
  out = np.zeros((len(x_nhwc), len(rows), len(columns), layer.features))
  for group in range(layer.groups):
    below = slice(group * i, (group + 1) * i)
    above = slice(group * o, (group + 1) * o)
    for r, y in enumerate(rows):
      for s, x in enumerate(columns):
        window = x_nhwc[:, y : y + layer.size, x : x + layer.size, below]
        out[:, r, s, above] = np.tensordot(window, kernel_hwio[..., above], 3)
  return out + bias_o


def pool(x_nhwc, ceil):
  """Windows of 3 from every second pixel; the last may be cut short."""
  starts = [range(0, max(n - 1 if ceil else n - 2, 1), 2) for n in x_nhwc.shape]
  return np.stack(
    [
      np.stack(
        [x_nhwc[:, y : y + 3, x : x + 3].max((1, 2)) for x in starts[2]], 1
      )
      for y in starts[1]
    ],
    axis=1,
  )


def normalise(x_nhwc, size=5, alpha=1e-4, beta=0.75):
  """Every channel over a power of its neighbours' mean square."""
  out = np.empty_like(x_nhwc)
  for c in range(x_nhwc.shape[-1]):
    near = x_nhwc[..., max(c - size // 2, 0) : c + size // 2 + 1]
    scale = 1 + alpha / size * (near**2).sum(axis=-1)
    out[..., c] = x_nhwc[..., c] / scale**beta
  return out


def reference(image, what, network):
  """{layer: response before its ReLU}, float64, layer by layer."""
  arrays = {
    name.removeprefix('params/trunk/'): value.astype(np.float64)
    for name, value in what.tensors.items()
  }

  def conv(x, layer):
    kernel, bias = (arrays[f'{layer.name}/{k}'] for k in ('kernel', 'bias'))
    return convolve(x, kernel, bias, layer)

  asked = what.convention
  x = image.astype(np.float64) * asked.range / 255
  x = x[..., ::-1] if asked.order == 'BGR' else x
  x = (x - np.array(asked.mean)) / np.array(asked.std)
  found = {}
  for layer in network.layers:
    if isinstance(layer, Pool):
      x = pool(x, layer.ceil)
    elif isinstance(layer, LocalNorm):
      x = normalise(x)
    else:
      if isinstance(layer, Fire):
        squeeze = Conv(f'{layer.name}_squeeze', layer.squeeze, 1)
        narrow = Conv(f'{layer.name}_expand1', layer.expand, 1)
        wide = Conv(f'{layer.name}_expand3', layer.expand, 3, padding=1)
        x = np.maximum(conv(x, squeeze), 0)
        x = np.concatenate([conv(x, narrow), conv(x, wide)], axis=-1)
      else:
        x = conv(x, layer)
      found[layer.name] = x
      x = np.maximum(x, 0)
  return found


def assert_near(found, expected):
  """Equal to 1e-5 of the largest response."""
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('activation', ['before', 'after'])
@pytest.mark.parametrize('name', NETWORKS)
def test_responses_equal_a_float64_network(write, name, activation):
  network, what = NETWORKS[name], random_weights(name)
  image = weights.random_image(2, 63, 76, 3)
  # The lowest, the highest and one between.
  chosen = network.names[0], network.names[-1], network.names[1]
  responses, _, convention = load(write(what), chosen, activation)
  assert convention == what.convention
  found = jax.jit(responses)(image)
  expected = reference(image, what, network)
  for layer, response in zip(
    [n for n in network.names if n in chosen], found, strict=True
  ):
    wanted = expected[layer]
    assert_near(
      response, np.maximum(wanted, 0) if activation == 'after' else wanted
    )


def test_caffe_alexnet_at_full_width_equals_a_float64_network(write):
  network = conv_bank.NETWORKS['alexnet_caffe']
  what = random_weights('alexnet_caffe', network)
  image = weights.random_image(1, 67, 67, 3)
  responses, *_ = conv_bank.load(write(what), network.names, 'before')
  expected = reference(image, what, network)
  # It would not be a test of the normalisation if that changed nothing.
  scale = expected['conv1'] / normalise(expected['conv1'])
  assert np.median(scale) > 1.02
  for layer, response in zip(network.names, responses(image), strict=True):
    assert_near(response, expected[layer])


def test_torchvision_alexnet_equals_torchvision(write):
  fixture = np.load(PARITY / 'alexnet_torchvision.npz')
  state = weights.fixture_state(fixture)
  path = write(translate.alexnet_torchvision(state))
  layers = [f'conv{i}' for i in range(1, 6)]
  responses, *_ = conv_bank.load(path, layers, 'before')
  found = responses(weights.random_image(1, 63, 71, 3))
  for layer, response in zip(layers, found, strict=True):
    assert_near(response, fixture[layer])


@pytest.mark.parametrize('together', [1, 3, 8])
def test_an_image_alone_responds_as_in_a_batch(write, monkeypatch, together):
  monkeypatch.setattr(groups, 'size', lambda shapes: together)
  image = weights.random_image(5, 45, 45, 3)
  responses, *_ = load(write(random_weights('small')), SMALL.names)
  respond = jax.jit(responses)
  whole = respond(image)
  for some in ([3], [4, 3, 2, 1, 0, 3, 3]):
    for all_n, some_n in zip(whole, respond(image[some]), strict=True):
      assert len(some_n) == len(some)
      np.testing.assert_array_equal(some_n, all_n[np.array(some)])


@pytest.mark.parametrize(
  ('name', 'size', 'sizes'),
  [
    ('alexnet_caffe', 224, [54, 27, 13, 13, 13]),
    ('alexnet_torchvision', 224, [55, 27, 13, 13, 13]),
    ('squeezenet_v1_0', 224, [109, 54, 54, 54, 27, 27, 27, 27, 13]),
    ('squeezenet_v1_0', 64, [29, 14, 14, 14, 7, 7, 7, 7, 3]),
  ],
)
def test_maps_have_the_sizes_of_the_original(write, name, size, sizes):
  layers = NETWORKS[name].names
  responses, *_ = load(write(random_weights(name)), layers)
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  shapes = [r.shape[1:3] for r in jax.eval_shape(responses, image)]
  assert shapes == [(n, n) for n in sizes]


def test_networks_have_the_features_of_the_original():
  features = {
    name: [layer.features for layer in network.layers if layer.name]
    for name, network in conv_bank.NETWORKS.items()
  }
  assert features == {
    'alexnet_caffe': [96, 256, 384, 384, 256],
    'alexnet_torchvision': [64, 192, 384, 256, 256],
    'squeezenet_v1_0': [96, 128, 128, 256, 256, 384, 384, 512, 512],
  }
  groups = [
    shapes[0][2]
    for shapes in conv_bank.NETWORKS['alexnet_caffe'].shapes().values()
  ]
  assert groups == [3, 48, 256, 192, 192]


def test_no_layers_named_are_those_of_the_paper(write):
  responses, *_ = load(write(random_weights('alexnet_caffe')))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)
  shapes = [r.shape for r in jax.eval_shape(responses, image)]
  assert shapes == [(1, 54, 54, 12), (1, 27, 27, 32)]


def test_only_the_layers_below_are_needed(write):
  what = random_weights('small')
  first = {k: v for k, v in what.tensors.items() if 'conv1' in k}
  path = write(dataclasses.replace(what, tensors=first))
  responses, *_ = load(path, ('conv1',))
  assert len(responses(np.zeros((1, 9, 9, 3), np.uint8))) == 1
  with pytest.raises(UserError, match='fire2_squeeze/kernel is missing'):
    load(path, ('fire2',))


def test_every_misfit_is_named_in_one_line(write):
  what = random_weights('small')
  tensors = dict(what.tensors)
  del tensors['params/trunk/conv1/bias']
  tensors['params/trunk/conv9/bias'] = np.zeros(3, np.float32)
  tensors['params/trunk/fire2_expand1/kernel'] = np.zeros((1, 1, 3, 5))
  with pytest.raises(UserError) as caught:
    load(write(dataclasses.replace(what, tensors=tensors)), ('conv3',))
  message = str(caught.value)
  assert '\n' not in message
  assert 'conv1/bias is missing' in message
  assert 'conv9/bias is unexpected' in message
  assert (
    'fire2_expand1/kernel is [1, 1, 3, 5] instead of [1, 1, 3, 4]' in message
  )


def test_another_network_is_refused(write):
  what = dataclasses.replace(random_weights('small'), network='resnet152')
  with pytest.raises(UserError, match='are of resnet152'):
    load(write(what))


def test_bad_settings_get_one_line(write):
  path = write(random_weights('small'))
  with pytest.raises(UserError, match='conv1, fire2, conv3; got conv2'):
    load(path, ('conv1', 'conv2'))
  with pytest.raises(UserError, match="'before' or 'after', got 'relu'"):
    load(path, activation='relu')


@pytest.mark.parametrize('size', [5, 8])
def test_small_images_get_one_line(write, size):
  responses, *_ = load(write(random_weights('small')), ('fire2',))
  with pytest.raises(UserError, match='needs larger images'):
    responses(np.zeros((1, size, size, 3), np.uint8))
