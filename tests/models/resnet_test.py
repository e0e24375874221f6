import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sjft_jax.models import resnet


def abstract(trunk, size):
  image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  init = functools.partial(trunk.init, train=False)
  return image, jax.eval_shape(init, jax.random.key(0), image)


def shapes(tree):
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {name: value.shape for name, value in flat.items()}


def test_resnet152_is_the_released_network():
  trunk = resnet.TRUNKS['resnet152']()
  image, variables = abstract(trunk, 224)
  params = shapes(variables['params'])
  assert sum(name.endswith('kernel') for name in params) == 155
  assert sum(name.endswith('scale') for name in params) == 151
  assert not [n for n in params if 'bias' in n and 'norm' not in n]
  for name, shape in {
    'conv1/kernel': (7, 7, 3, 64),
    'res2_0/branch1/kernel': (64, 256),
    'res2_0/branch2a/kernel': (64, 64),
    'res3_0/branch1/kernel': (256, 512),
    'res4_35/branch2b/kernel': (3, 3, 256, 256),
    'res5_2/branch2c/kernel': (512, 2048),
    'norm5/scale': (2048,),
  }.items():
    assert params[name] == shape
  # The pool feeds the first block as it is: nothing normalises it.
  assert 'res2_0/norm/scale' not in params
  feature, captured = jax.eval_shape(
    functools.partial(trunk.apply, train=False, capture_intermediates=True),
    variables,
    image,
  )
  assert feature.shape == (2, 2048)
  sides = {
    name: captured['intermediates'][name]['__call__'][0].shape[1]
    for name in ('conv1', 'res2_2', 'res3_7', 'res4_35', 'res5_2')
  }
  assert list(sides.values()) == [112, 56, 28, 14, 7]


def test_v1_5_is_the_common_resnet152():
  """Without its classifier 58,143,808 parameters, as published weights."""
  trunk = resnet.TRUNKS['resnet152'](variant='v1.5')
  _, variables = abstract(trunk, 224)
  params = shapes(variables['params'])
  assert sum(name.endswith('kernel') for name in params) == 155
  assert sum(name.endswith('scale') for name in params) == 155
  assert sum(np.prod(shape) for shape in params.values()) == 58_143_808


def noise(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def averaging(norm):
  return jax.jit(functools.partial(norm.apply, mutable=['batch_stats']))


def test_width_halves_the_kernels_of_every_layer():
  _, full = abstract(resnet.TRUNKS['resnet26'](), 64)
  _, half = abstract(resnet.TRUNKS['resnet26'](width=0.5), 64)
  full, half = shapes(full['params']), shapes(half['params'])
  assert full.keys() == half.keys()
  for layer, shape in full.items():
    inputs = 1 if layer.startswith('conv1') or len(shape) == 1 else 2
    assert np.prod(shape) == 2**inputs * np.prod(half[layer])


def test_converted_averages_forget_as_fast_as_momentum_says():
  norm = resnet.BatchNorm(train=True, momentum=0.9)
  x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (4, 5, 5, 2)))
  x = x.astype(jnp.float32)
  variables = jax.jit(norm.init)(jax.random.key(0), x)
  stats = variables['batch_stats'] | {'weight': jnp.float32(1000)}
  _, after = averaging(norm)({**variables, 'batch_stats': stats}, x)
  mean = after['batch_stats']['mean']
  np.testing.assert_allclose(mean, 0.1 * np.mean(x, (0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize('size', [2, 3, 7, 8, 112])
def test_max_pool_keeps_the_windows_that_are_cut(size):
  x = np.random.default_rng(0).normal(size=(2, size, size + 1, 3))
  pooled = jax.jit(resnet.max_pool_ceil)(jnp.asarray(x, jnp.float32))
  np.testing.assert_array_equal(pooled, pool(x.astype(np.float32)))
  pooled = jax.jit(resnet.max_pool_padded)(jnp.asarray(x, jnp.float32))
  np.testing.assert_array_equal(pooled, pool_padded(x.astype(np.float32)))


@pytest.mark.parametrize('pool', [resnet.max_pool_ceil, resnet.max_pool_padded])
@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_gradient_of_the_pool_goes_to_each_maximum(monkeypatch, pool, backend):
  """As it is formulated for either, here on the CPU."""
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  x = np.random.default_rng(0).permutation(2 * 8 * 9 * 3).reshape(2, 8, 9, 3)
  x = jnp.asarray(x, jnp.float32)
  shape = jax.eval_shape(lambda x: pool(x), x).shape
  g = np.random.default_rng(1).normal(size=shape)
  # Functions of their own: traces are kept by function, whatever the backend.
  both = jax.jit(lambda x, g: (pool(x), jax.vjp(lambda x: pool(x), x)[1](g)[0]))
  y, found = map(np.asarray, both(x, jnp.asarray(g, jnp.float32)))
  expected = np.zeros(x.shape)
  # Every value occurs once.
  for value, slope in zip(y.ravel(), g.ravel(), strict=True):
    expected[np.asarray(x) == value] += slope
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_kernels_of_one_pixel_are_no_copies_of_the_map():
  """What XLA's CPU backend makes of four axes: a transposed cotangent."""
  block = resnet.Bottleneck(
    8, 1, False, False, lambda name: lambda x: x, jnp.float32
  )
  x = jax.ShapeDtypeStruct((4, 16, 16, 32), jnp.float32)
  params = jax.eval_shape(block.init, jax.random.key(0), x)
  gradient = jax.jit(jax.grad(lambda p, x: block.apply(p, x).sum()))
  compiled = gradient.lower(params, x).compile().as_text()
  m = 4 * 16 * 16
  assert f'[{m},8]' in compiled
  assert f'[8,{m}]' not in compiled
  assert f'[32,{m}]' not in compiled


@pytest.mark.parametrize('setting', ['stem', 'variant'])
def test_unknown_stem_or_variant_is_named(setting):
  with pytest.raises(ValueError, match='huge'):
    abstract(resnet.TRUNKS['resnet26'](**{setting: 'huge'}), 32)


def random_variables(trunk, size):
  """Every parameter and running average at random, variances positive."""
  _, variables = abstract(trunk, size)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape, scale=0.3)
    name = path[-1].key
    x = 1 + np.abs(x) if name in ('var', 'scale', 'weight') else x
    return jnp.asarray(x, jnp.float32)

  return jax.tree.map_with_path(draw, variables)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(trunk, variables, image, train):
  return trunk.apply(
    variables, image.astype(jnp.float32), train, mutable=['batch_stats']
  )


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  ('variant', 'stem'),
  [('v1.5', 'imagenet'), *(('caffe', stem) for stem in resnet.STEMS)],
)
def test_forward_equals_loops_in_float64(variant, stem, train):
  trunk = resnet.ResNet((2, 1), width=1 / 32, stem=stem, variant=variant)
  variables = random_variables(trunk, 13)
  image = np.random.default_rng(1).normal(size=(3, 13, 13, 3), scale=50)
  feature, updated = apply(trunk, variables, image, train)
  expected, statistics = forward(variables, image, variant, stem, train)
  np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-5)
  if train:
    flat = traverse_util.flatten_dict(updated['batch_stats'], sep='/')
    for name, value in statistics.items():
      np.testing.assert_allclose(flat[name], value, rtol=1e-4, atol=1e-4)


def forward(variables, image, variant, stem, train):
  """The wiring for stages (2, 1), written out block by block."""
  float64 = functools.partial(np.asarray, dtype=np.float64)
  p = traverse_util.flatten_dict(variables['params'], sep='/')
  s = traverse_util.flatten_dict(variables['batch_stats'], sep='/')
  p, s = jax.tree.map(float64, (p, s))
  statistics = {}

  def norm(x, name):
    mean, var = s[f'{name}/mean'], s[f'{name}/var']
    if train:
      batch = x.reshape(-1, x.shape[-1])
      weight = 0.999 * s[f'{name}/weight'] + 1
      for kind, new in (('mean', batch.mean(0)), ('var', batch.var(0, ddof=1))):
        old = s[f'{name}/{kind}']
        statistics[f'{name}/{kind}'] = (old * (weight - 1) + new) / weight
      mean, var = batch.mean(0), batch.var(0)
    x = (x - mean) / np.sqrt(var + 1e-5)
    return x * p[f'{name}/scale'] + p[f'{name}/bias']

  def act(x, name):
    return np.maximum(norm(x, name), 0)

  def one(x, name):
    return np.einsum('nhwi,io->nhwo', x, p[f'{name}/kernel'])

  def inner(x, name):
    x = act(one(x, f'{name}/branch2a'), f'{name}/norm2a')
    x = conv(x, p[f'{name}/branch2b/kernel'], 1)
    return one(act(x, f'{name}/norm2b'), f'{name}/branch2c')

  def post(x, name, stride=1):
    y = act(one(x, f'{name}/branch2a'), f'{name}/norm2a')
    y = conv(y, p[f'{name}/branch2b/kernel'], stride)
    y = one(act(y, f'{name}/norm2b'), f'{name}/branch2c')
    if name.endswith('_0'):
      x = one(x[:, ::stride, ::stride], f'{name}/branch1')
      x = norm(x, f'{name}/norm1')
    return np.maximum(x + norm(y, f'{name}/norm2c'), 0)

  stride = {'imagenet': 2, 'strided': 2, 'small': 1}[stem]
  x = act(conv(image, p['conv1/kernel'], stride), 'norm1')
  if variant == 'v1.5':
    x = post(post(pool_padded(x), 'res2_0'), 'res2_1')
    return post(x, 'res3_0', 2).mean((1, 2)), statistics
  x = pool(x) if stem == 'imagenet' else x
  x = one(x, 'res2_0/branch1') + inner(x, 'res2_0')
  x = x + inner(act(x, 'res2_1/norm'), 'res2_1')
  y = act(x, 'res3_0/norm')[:, ::2, ::2]
  x = one(y, 'res3_0/branch1') + inner(y, 'res3_0')
  return act(x, 'norm5').mean((1, 2)), statistics


def conv(x, kernel, stride):
  side = len(kernel)
  pad = (side - 1) // 2
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  rows = range(0, x.shape[1] - side + 1, stride)
  columns = range(0, x.shape[2] - side + 1, stride)
  return np.stack(
    [
      np.stack(
        [
          np.tensordot(x[:, i : i + side, j : j + side], kernel, 3)
          for j in columns
        ],
        axis=1,
      )
      for i in rows
    ],
    axis=1,
  )


def pool(x):
  """Caffe: windows start at 0, 2, ...; as many as it takes to see the end."""
  starts = [range(0, 2 * -(-(size - 3) // 2) + 1, 2) for size in x.shape[1:3]]
  return np.stack(
    [
      np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in starts[1]], 1)
      for i in starts[0]
    ],
    1,
  )


def pool_padded(x):
  """Windows start at -1, 1, 3, ...; the last one begins inside."""
  starts = [range(0, size, 2) for size in x.shape[1:3]]
  around = [(0, 0), (1, 1), (1, 1), (0, 0)]
  x = np.pad(x, around, constant_values=-np.inf)
  return np.stack(
    [
      np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in starts[1]], 1)
      for i in starts[0]
    ],
    1,
  )


def test_first_running_averages_are_those_of_the_first_batch():
  norm = resnet.BatchNorm(train=True, momentum=0.999)
  x = noise(8, 4, 4, 2) * 3 + 1
  variables = jax.jit(norm.init)(jax.random.key(0), x)
  _, updated = averaging(norm)(variables, x)
  found = updated['batch_stats']
  rows = np.asarray(x, np.float64).reshape(-1, 2)
  np.testing.assert_allclose(found['mean'], rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(found['var'], rows.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize('some', [slice(2), slice(2, None)])
def test_running_averages_of_some_images_of_the_batch(some):
  norm = resnet.BatchNorm(True, 0.9, averaged=some)
  x = noise(5, 3, 3, 2) * 3 + 1
  variables = jax.jit(norm.init)(jax.random.key(0), x)
  y, updated = averaging(norm)(variables, x)
  rows = np.asarray(x[some], np.float64).reshape(-1, 2)
  found = updated['batch_stats']
  np.testing.assert_allclose(found['mean'], rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(found['var'], rows.var(0, ddof=1), rtol=1e-5)
  # The batch is normalised by all of it.
  np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)


@pytest.mark.parametrize('variant', resnet.VARIANTS)
def test_rematerialisation_changes_nothing(variant):
  trunk = resnet.ResNet((1,), width=1 / 32, stem='small', variant=variant)
  variables = random_variables(trunk, 6)
  image = noise(3, 6, 6, 3)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(trunk, params):
    def loss(params):
      variables_ = variables | {'params': params}
      feature, updated = trunk.apply(
        variables_, image, True, slice(2), mutable=['batch_stats']
      )
      return (feature**2).sum(), updated

    return jax.grad(loss, has_aux=True)(params)

  plain = gradient(trunk, variables['params'])
  again = gradient(trunk.clone(remat=True), variables['params'])
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    plain,
    again,
  )


def test_bfloat16_keeps_parameters_and_feature_float32():
  trunk = resnet.ResNet((1,), width=0.125, dtype=jnp.bfloat16)
  variables = random_variables(trunk, 16)
  image = noise(2, 16, 16, 3)
  feature, updated = apply(trunk, variables, image, True)
  exact, _ = apply(trunk.clone(dtype=jnp.float32), variables, image, True)
  dtypes = {x.dtype for x in jax.tree.leaves((variables, updated, feature))}
  assert dtypes == {jnp.dtype('float32')}
  np.testing.assert_allclose(feature, exact, rtol=0.1, atol=0.05)
  assert not np.array_equal(feature, exact)
