import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from sjft_jax import optim

SHAPES = {
  'trunk/conv1/kernel': (3, 3, 3, 4),
  'trunk/norm1/scale': (4,),
  'trunk/norm1/bias': (4,),
  'target_head/kernel': (4, 3),
  'target_head/bias': (3,),
  'source_head/kernel': (4, 5),
  'source_head/bias': (5,),
}


def tree(seed):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def nested(flat):
  as_float32 = {k: jnp.asarray(v, jnp.float32) for k, v in flat.items()}
  return traverse_util.unflatten_dict(as_float32, sep='/')


def run(tx, updates):
  params = nested(tree(0))
  state = tx.init(params)
  for i in range(updates):
    change, state = tx.update(nested(tree(i + 1)), state, params)
    params = optax.apply_updates(params, change)
  return traverse_util.flatten_dict(params, sep='/')


def test_updates_are_caffes_across_a_drop_of_the_rate():
  decay, mu = 0.3, 0.9
  tx = optim.sgd(
    optim.step_schedule(0.5, [1, 3], 0.1),
    momentum=mu,
    weight_decay=decay,
  )
  w, v = tree(0), dict.fromkeys(SHAPES, 0.0)
  for i, rate in enumerate([0.5, 0.05, 0.05, 0.005]):
    for name, gradient in tree(i + 1).items():
      head_bias = name.endswith('head/bias')
      gradient = gradient + (0 if head_bias else decay) * w[name]
      v[name] = mu * v[name] + rate * (2 if head_bias else 1) * gradient
      w[name] = w[name] - v[name]
  found = run(tx, 4)
  for name in SHAPES:
    np.testing.assert_allclose(found[name], w[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('frozen', 'still'),
  [
    (('source_head',), {'source_head/kernel', 'source_head/bias'}),
    (('trunk/norm1/scale', 'target'), {'trunk/norm1/scale'}),
    (('trunk',), {n for n in SHAPES if n.startswith('trunk')}),
    (('trunk/*1/s*',), {'trunk/norm1/scale'}),
    (('*_head/bias',), {'target_head/bias', 'source_head/bias'}),
  ],
)
def test_frozen_parameters_keep_every_bit(frozen, still):
  schedule = optax.constant_schedule(0.1)
  found = run(optim.sgd(schedule, frozen=frozen), 3)
  free = run(optim.sgd(schedule), 3)
  begin = tree(0)
  for name in SHAPES:
    expected = begin[name].astype(np.float32) if name in still else free[name]
    np.testing.assert_array_equal(found[name], expected)
    assert not np.array_equal(free[name], begin[name].astype(np.float32))


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_adamw_in_float64(decay):
  tx = optim.adamw(
    optax.constant_schedule(0.1), momentum=0.8, weight_decay=decay
  )
  found = run(tx, 3)
  for name, w in tree(0).items():
    m = v = 0.0
    for i in (1, 2, 3):
      g = tree(i)[name]
      m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g**2
      change = m / (1 - 0.8**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
      w = w - 0.1 * (change + (0 if 'head/bias' in name else decay) * w)
    np.testing.assert_allclose(found[name], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('rule', [optim.sgd, optim.adamw])
def test_decay_to_the_start_pulls_the_trunk_back_and_heads_to_nothing(rule):
  """Without gradients: rate 1 and decay 1 go the whole way at once."""
  settings = {'momentum': 0.0, 'weight_decay': 1.0, 'to_start': True}
  tx = rule(optax.constant_schedule(1.0), **settings)
  state = tx.init(nested(tree(0)))
  away = nested(tree(1))
  none = jax.tree.map(jnp.zeros_like, away)
  change, _ = tx.update(none, state, away)
  found = optax.apply_updates(away, change)
  found = traverse_util.flatten_dict(found, sep='/')
  start, begin = tree(0), tree(1)
  for name in SHAPES:
    expected = start[name] if name.startswith('trunk') else 0 * start[name]
    expected = begin[name] if name.endswith('head/bias') else expected
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_cosine_rises_to_the_rate_and_falls_to_nothing():
  schedule = optim.cosine_schedule(0.8, 12, warmup=3)
  found = [float(schedule(i)) for i in range(13)]
  np.testing.assert_allclose(found[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
  expected = 0.4 * (1 + np.cos(np.pi * np.arange(10) / 9))
  np.testing.assert_allclose(found[3:], expected, atol=1e-6)


@pytest.mark.parametrize('warmup', [-1, 5, 6])
def test_warmup_must_leave_updates(warmup):
  with pytest.raises(ValueError, match=f'{warmup=}'):
    optim.cosine_schedule(0.1, 5, warmup)


def test_schedules_run_inside_jit():
  for schedule in (
    optim.step_schedule(1.0, (2,), 0.5),
    optim.cosine_schedule(1.0, 4, 2),
  ):
    found = jax.jit(schedule)(jnp.int32(3))
    np.testing.assert_allclose(found, 0.5)
