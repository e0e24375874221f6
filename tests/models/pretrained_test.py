import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, resnet, two_heads


@functools.cache
def variables(seed, width=0.125):
  """Random variables, the running averages included."""
  trunk = resnet.ResNet((1,), width=width, stem='small')
  model = two_heads.TwoHeads(trunk, 3, 5)
  image = jnp.zeros((1, 8, 8, 3), jnp.uint8)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), image, image
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes
  )


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_trunk_comes_back_and_heads_stay_fresh(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  saved, fresh = variables(0), variables(1)
  pretrained.save(path, saved, {'trunk': 'resnet26'})
  loaded = pretrained.load(path, fresh)
  assert jax.tree.structure(loaded) == jax.tree.structure(fresh)
  assert equal(loaded['params']['trunk'], saved['params']['trunk'])
  assert equal(loaded['batch_stats'], saved['batch_stats'])
  for head in ('target_head', 'source_head'):
    assert equal(loaded['params'][head], fresh['params'][head])
    assert not equal(loaded['params'][head], saved['params'][head])


def test_every_misfit_is_named_in_one_line(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  pretrained.save(path, variables(0))
  tensors = load_file(path)
  del tensors['params/trunk/norm1/scale']
  tensors['params/trunk/fc/kernel'] = np.zeros(2, np.float32)
  tensors['params/trunk/conv1/kernel'] = np.zeros((7, 7, 3, 8), np.float32)
  save_file(tensors, path, {'input': two_heads.INPUT})
  with pytest.raises(UserError) as caught:
    pretrained.load(path, variables(1))
  message = str(caught.value)
  assert '\n' not in message
  assert 'params/trunk/norm1/scale is missing' in message
  assert 'params/trunk/fc/kernel is unexpected' in message
  assert (
    'params/trunk/conv1/kernel is [7, 7, 3, 8] instead of [3, 3, 3, 8]'
    in message
  )


def test_weights_of_another_width_are_refused(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  pretrained.save(path, variables(0, 0.25))
  with pytest.raises(UserError, match=r'model\.width'):
    pretrained.load(path, variables(1))


def test_weights_trained_on_another_input_are_refused(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  pretrained.save(path, variables(0))
  save_file(load_file(path), path, {'input': 'RGB, 0..1'})
  with pytest.raises(UserError, match=r'trained on RGB, 0\.\.1'):
    pretrained.load(path, variables(1))


@pytest.mark.parametrize('content', [None, b'', b'\x80\x04 no weights'])
def test_unreadable_file_is_one_line(tmp_path, content):
  path = tmp_path / 'trunk.safetensors'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=str(path)) as caught:
    pretrained.load(path, variables(1))
  assert '\n' not in str(caught.value)
