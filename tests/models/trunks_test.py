import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import default
from sjft_jax import mesh
from sjft_jax.models import conv_bank, frozen, resnet, trunks


@pytest.mark.parametrize('name', trunks.TRUNKS)
def test_a_trunk_is_images_to_one_feature_each(name):
  c = default.get_config().model
  c.width, c.variant, c.dtype = 0.5, 'v1.5', 'bfloat16'
  c.statistics = 'device'
  trunk = trunks.TRUNKS[name](c)
  image = jax.ShapeDtypeStruct((2, 67, 67, 3), jnp.float32)
  feature, variables = jax.eval_shape(
    lambda x: trunk.init_with_output(jax.random.key(0), x, train=True), image
  )
  assert feature.shape[0] == 2
  assert feature.ndim == 2
  leaves = jax.tree.leaves((feature, variables))
  assert {x.dtype for x in leaves} == {jnp.dtype('float32')}


def test_settings_reach_the_residual_trunk():
  c = default.get_config().model
  c.width, c.stem, c.variant, c.remat = 0.25, 'small', 'v1.5', True
  c.momentum, c.dtype = 0.5, 'bfloat16'
  expected = resnet.TRUNKS['resnet50'](0.25, 'small', 'v1.5', 0.5)
  expected = expected.clone(dtype='bfloat16', remat=True, axis_name=mesh.AXIS)
  assert trunks.TRUNKS['resnet50'](c) == expected


def variables_of(trunk, image):
  """Drawn by NumPy: compiling the initialisers takes longer than the test."""
  init = functools.partial(trunk.init, train=False)
  rng = np.random.default_rng(0)

  def draw(x):
    if x.ndim == 1:
      return np.zeros(x.shape, np.float32)
    scale = np.sqrt(2 / np.prod(x.shape[:-1]))
    return rng.normal(scale=scale, size=x.shape).astype(np.float32)

  return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0), image))


@pytest.mark.parametrize('name', conv_bank.NETWORKS)
def test_a_plain_trunk_is_the_scaled_mean_of_the_last_responses(name):
  network = conv_bank.NETWORKS[name]
  trunk = trunks.Plain(network)
  rng = np.random.default_rng(1)
  image = rng.normal(size=(2, 67, 67, 3)).astype(np.float32)
  variables = variables_of(trunk, image)
  flat = traverse_util.flatten_dict({'params': {'trunk': variables['params']}})
  # As a weight file has them.
  assert {'/'.join(k): v.shape for k, v in flat.items()} == (
    conv_bank.tensor_shapes(network)
  )

  @jax.jit
  def both(variables, image):
    arrays = {
      layer: (parts['kernel'], parts['bias'])
      for layer, parts in variables['params'].items()
    }
    *_, (_, _, last) = network.responses(image, arrays)
    return trunk.apply(variables, image, train=False), last

  feature, last = both(variables, image)
  mean = np.asarray(last.mean((1, 2)))
  scale = np.sqrt((mean**2).mean(axis=1, keepdims=True))
  np.testing.assert_allclose(feature, mean / scale, rtol=1e-4)
  assert last.shape[-1] == {'squeezenet_v1_0': 512}.get(name, 256)


def test_a_plain_trunk_does_not_fail_where_nothing_responds():
  layers = (
    frozen.Conv('conv1', 4, 3, stride=2),
    frozen.Pool(ceil=True),
    frozen.Fire('fire2', 2, 3),
  )
  trunk = trunks.Plain(frozen.Network(layers, default=('conv1',)))
  image = jnp.zeros((1, 9, 9, 3))
  variables = variables_of(trunk, image)
  answer = jax.value_and_grad(lambda v: trunk.apply(v, image, train=True).sum())
  feature, gradient = jax.jit(answer)(variables)
  assert feature == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
