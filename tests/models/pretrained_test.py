import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, resnet, two_heads, weight_files
from sjft_jax.models.convention import CAFFE, TORCHVISION


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


save = functools.partial(pretrained.save, network='resnet', convention=CAFFE)


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_trunk_comes_back_and_heads_stay_fresh(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  saved, fresh = variables(0), variables(1)
  save(path, saved)
  loaded = pretrained.load(path, fresh, CAFFE)
  assert jax.tree.structure(loaded) == jax.tree.structure(fresh)
  assert equal(loaded['params']['trunk'], saved['params']['trunk'])
  assert equal(loaded['batch_stats'], saved['batch_stats'])
  for head in ('target_head', 'source_head'):
    assert equal(loaded['params'][head], fresh['params'][head])
    assert not equal(loaded['params'][head], saved['params'][head])


def test_every_misfit_is_named_in_one_line(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  save(path, variables(0))
  tensors = load_file(path)
  del tensors['params/trunk/norm1/scale']
  tensors['params/trunk/fc/kernel'] = np.zeros(2, np.float32)
  tensors['params/trunk/conv1/kernel'] = np.zeros((7, 7, 3, 8), np.float32)
  save_file(tensors, path, {'input': CAFFE.encode(), 'network': 'another'})
  with pytest.raises(UserError) as caught:
    pretrained.load(path, variables(1), CAFFE)
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
  save(path, variables(0, 0.25))
  with pytest.raises(UserError, match=r'model\.width'):
    pretrained.load(path, variables(1), CAFFE)


def test_weights_trained_on_another_input_are_refused(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  save(path, variables(0), convention=TORCHVISION)
  assert weight_files.convention(path) == TORCHVISION
  with pytest.raises(UserError, match=r'is fed BGR, .* trained on RGB, 0\.\.1'):
    pretrained.load(path, variables(1), CAFFE)


@pytest.mark.parametrize(
  ('metadata', 'match'),
  [
    (None, 'do not say their network and input'),
    ({'network': 'resnet'}, 'do not say their input'),
    ({'network': 'resnet', 'input': 'RGB'}, 'in a known way'),
    ({'network': 'resnet', 'input': '[1e999]'}, 'in a known way'),
  ],
)
def test_weights_that_do_not_say_their_input_are_refused(
  tmp_path, metadata, match
):
  path = tmp_path / 'trunk.safetensors'
  save_file({'params/trunk/conv1/kernel': np.zeros(3)}, path, metadata)
  with pytest.raises(UserError, match=match):
    pretrained.load(path, variables(1), CAFFE)


def test_a_classifier_that_came_with_the_weights_is_left_out(tmp_path):
  path = tmp_path / 'trunk.safetensors'
  save(path, variables(0))
  tensors = load_file(path) | {'params/head/bias': np.zeros(1000)}
  save_file(tensors, path, {'input': CAFFE.encode(), 'network': 'resnet'})
  loaded = pretrained.load(path, variables(1), CAFFE)
  assert set(loaded['params']) == {'trunk', 'target_head', 'source_head'}


@pytest.mark.parametrize('content', [None, b'', b'\x80\x04 no weights'])
def test_unreadable_file_is_one_line(tmp_path, content):
  path = tmp_path / 'trunk.safetensors'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=str(path)) as caught:
    pretrained.load(path, variables(1), CAFFE)
  assert '\n' not in str(caught.value)
