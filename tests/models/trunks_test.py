import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import default
from sjft_jax import mesh
from sjft_jax.models import conv_bank, resnet, trunks


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


@pytest.mark.parametrize('name', conv_bank.NETWORKS)
def test_a_plain_trunk_is_the_scaled_mean_of_the_last_responses(name):
  network = conv_bank.NETWORKS[name]
  trunk = trunks.Plain(network)
  image = jax.random.normal(jax.random.key(1), (2, 67, 67, 3))
  made = jax.jit(functools.partial(trunk.init_with_output, train=False))
  feature, variables = made(jax.random.key(0), image)
  flat = traverse_util.flatten_dict({'params': {'trunk': variables['params']}})
  # As a weight file has them.
  assert {'/'.join(k): v.shape for k, v in flat.items()} == (
    conv_bank.tensor_shapes(network)
  )
  arrays = {
    layer: (parts['kernel'], parts['bias'])
    for layer, parts in variables['params'].items()
  }

  @jax.jit
  def last_of(image, arrays):
    *_, (_, _, last) = network.responses(image, arrays)
    return last

  last = last_of(image, arrays)
  mean = np.asarray(last.mean((1, 2)))
  scale = np.sqrt((mean**2).mean(axis=1, keepdims=True))
  np.testing.assert_allclose(feature, mean / scale, rtol=1e-4)
  assert last.shape[-1] == {'squeezenet_v1_0': 512}.get(name, 256)


def test_a_plain_trunk_does_not_fail_where_nothing_responds():
  trunk = trunks.Plain(conv_bank.NETWORKS['squeezenet_v1_0'])
  image = jnp.zeros((1, 67, 67, 3))
  init = jax.jit(functools.partial(trunk.init, train=False))
  variables = init(jax.random.key(0), image)
  answer = jax.value_and_grad(lambda v: trunk.apply(v, image, train=True).sum())
  feature, gradient = jax.jit(answer)(variables)
  assert feature == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
