"""Random weights that NumPy makes alike for a fixture and for its test."""

import numpy as np


def random_state(shapes, seed=0):
  """{name: array} of the shapes; activations neither vanish nor explode.

  Means and variances are those of a batch normalisation; other vectors are
  biases or scales.
  """
  # Unlike Generator's, the numbers of RandomState never change.
  rng = np.random.RandomState(seed)
  state = {}
  for name, shape in shapes.items():
    value = rng.standard_normal(shape)
    if name.endswith('running_var'):
      value = 1 + value**2
    elif len(shape) > 1:
      value *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(('weight', 'gamma')):
      value = 1 + 0.1 * value
    else:
      value *= 0.1
    state[name] = value.astype(np.float32)
  return state


def random_caffe_state(shapes, seed=0):
  """As `random_state` for {layer/blob: shape}: averages are sums of images."""
  state = random_state(
    {_torch_name(name): shape for name, shape in shapes.items()}, seed
  )
  state = dict(zip(shapes, state.values(), strict=True))
  for name in shapes:
    if name.startswith('bn') and name.endswith('/2'):
      factor = np.float32(500 + 100 * state[name])
      state[name] = factor
      for blob in '01':
        state[name[:-1] + blob] = state[name[:-1] + blob] * factor
  return state


def _torch_name(name):
  """A name by which `random_state` knows what kind of numbers are wanted."""
  layer, blob = name.split('/')
  kinds = {'bn': ('running_mean', 'running_var', 'factor')}
  return f'{layer}.{kinds.get(layer[:2], ("weight", "bias"))[int(blob)]}'


def random_image(*shape, seed=0):
  """Noise in blobs of 8 pixels, so that it has low frequencies too; uint8."""
  rng = np.random.RandomState(seed)
  n, h, w, c = shape
  coarse = rng.randint(0, 200, (n, -(-h // 8), -(-w // 8), c))
  blobs = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :h, :w]
  return (blobs + rng.randint(0, 56, shape)).astype(np.uint8)


def fixture_shapes(fixture):
  """{name: shape} of the weights of a fixture."""
  return {
    str(name): tuple(map(int, str(shape).split()))
    for name, shape in zip(fixture['names'], fixture['shapes'], strict=True)
  }


def fixture_state(fixture, make=random_state):
  """The weights of a fixture."""
  return make(fixture_shapes(fixture))
