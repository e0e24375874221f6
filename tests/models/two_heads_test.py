import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sjft_jax import train
from sjft_jax.models import resnet, two_heads
from sjft_jax.models.convention import CAFFE, TORCHVISION


@functools.cache
def network():
  trunk = resnet.ResNet((1,), width=0.125, stem='small')
  model = two_heads.TwoHeads(trunk, target_classes=3, source_classes=5)
  return model, train.init(model, 0, 8)


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(model, variables, target, source, training):
  return model.apply(
    variables, target, source, training, mutable=['batch_stats']
  )


@functools.partial(jax.jit, static_argnums=0)
def feature_of(model, variables, image):
  alone = {kind: tree['trunk'] for kind, tree in variables.items()}
  return model.trunk.apply(alone, model.convention(image), False)


def images(n, seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(('t', 's'), [(4, 4), (4, 0), (0, 4), (2, 3)])
def test_each_half_goes_to_its_own_head(t, s):
  model, variables = network()
  target, source = images(t, 1), images(s, 2)
  logits, _ = apply(model, variables, target, source, False)
  for name, part, image in zip(
    ('target_head', 'source_head'), logits, (target, source), strict=True
  ):
    head = jax.tree.map(np.float64, variables['params'][name])
    feature = feature_of(model, variables, image)
    assert part.shape == (len(image), len(head['bias']))
    assert part.dtype == jnp.float32
    expected = np.float64(feature) @ head['kernel'] + head['bias']
    np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-5)


def test_training_normalises_over_both_halves():
  model, variables = network()
  target, source = images(4, 1), images(4, 2)
  (alone, _), _ = apply(model, variables, target, source[:0], True)
  (joint, _), _ = apply(model, variables, target, source, True)
  (swapped, _), _ = apply(model, variables, target, source[::-1], True)
  assert np.abs(joint - alone).max() > 1e-4
  np.testing.assert_allclose(joint, swapped, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ('averages', 'part'),
  [('both', slice(None)), ('target', slice(4)), ('source', slice(4, None))],
)
def test_which_half_enters_the_running_averages(averages, part):
  model, variables = network()
  model = model.clone(averages=averages)
  both = images(4, 1), images(3, 2)
  _, updated = apply(model, variables, *both, True)
  found = updated['batch_stats']['trunk']['norm1']['mean']
  x = CAFFE(jnp.concatenate(both)[part])
  kernel = variables['params']['trunk']['conv1']['kernel']
  response = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(found, response.mean((0, 1, 2)), rtol=1e-4)
  # A half that is alone is averaged whatever the setting.
  alone, plain = (
    apply(m, variables, both[0], both[1][:0], True)[1]
    for m in (model, model.clone(averages='both'))
  )
  jax.tree.map(np.testing.assert_array_equal, alone, plain)


def test_heads_begin_small_and_without_bias():
  class Identity(nn.Module):
    def __call__(self, image_nhwc, train):
      return image_nhwc.reshape(len(image_nhwc), -1)

  model = two_heads.TwoHeads(Identity(), 100, 200)
  params = train.init(model, 0, 8)['params']
  for name, classes in (('target_head', 100), ('source_head', 200)):
    kernel = params[name]['kernel']
    assert kernel.shape == (192, classes)
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.03)
    np.testing.assert_array_equal(params[name]['bias'], np.zeros(classes))


def test_the_trunk_is_fed_what_its_weights_want():
  class Pixels(nn.Module):
    """A trunk whose feature is its input."""

    @nn.compact
    def __call__(self, image_nhwc, train):
      return image_nhwc.reshape(len(image_nhwc), -1)

  image = np.array([[[[255, 117, 0]]]], np.uint8)
  eye = {'kernel': np.eye(3, dtype=np.float32), 'bias': np.zeros(3)}
  variables = {'params': {'target_head': eye, 'source_head': eye}}
  for convention, expected in (
    (CAFFE, [-104, 0, 132]),
    (TORCHVISION, [2.2489, 0.0126, -1.8044]),
  ):
    model = two_heads.TwoHeads(Pixels(), 3, 3, convention=convention)
    logits, _ = model.apply(variables, image, image[:0], train=False)
    np.testing.assert_allclose(logits, [expected], atol=1e-4)
