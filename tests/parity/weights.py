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
    elif name.endswith('weight'):
      value = 1 + 0.1 * value
    else:
      value *= 0.1
    state[name] = value.astype(np.float32)
  return state


def random_image(*shape, seed=0):
  """Noise in blobs of 8 pixels, so that it has low frequencies too; uint8."""
  rng = np.random.RandomState(seed)
  n, h, w, c = shape
  coarse = rng.randint(0, 200, (n, -(-h // 8), -(-w // 8), c))
  blobs = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :h, :w]
  return (blobs + rng.randint(0, 56, shape)).astype(np.uint8)


def fixture_state(fixture, seed=0):
  """The weights whose names and shapes a fixture holds."""
  shapes = {
    str(name): tuple(map(int, str(shape).split()))
    for name, shape in zip(fixture['names'], fixture['shapes'], strict=True)
  }
  return random_state(shapes, seed)
