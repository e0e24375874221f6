import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sjft_jax import checkpoints, mesh, optim, train
from sjft_jax.errors import UserError
from sjft_jax.models import resnet, two_heads


class Linear(nn.Module):
  """A trunk without batch norm: an image's feature is its own affair."""

  @nn.compact
  def __call__(self, image_nhwc, train):
    flat = image_nhwc.reshape(len(image_nhwc), -1)
    return nn.Dense(6, use_bias=False)(flat / 1000)


TRUNKS = {
  'linear': Linear(),
  'resnet': resnet.ResNet((1,), width=1 / 16, stem='small', momentum=0.9),
}


@functools.cache
def compiled(
  trunk='resnet', devices=1, frozen=(), rate=0.05, unroll=None, decay=1e-4
):
  """(mesh, variables, optimiser, step) of a tiny network."""
  model = two_heads.TwoHeads(TRUNKS[trunk], target_classes=3, source_classes=5)
  over = mesh.make(jax.devices()[:devices])
  schedule = optax.constant_schedule(rate)
  tx = optim.sgd(schedule, frozen=frozen, weight_decay=decay)
  step = train.make_step(model, tx, schedule, over, unroll=unroll)
  return over, train.init(model, 0, 8), tx, step


def batches(n, *, m=2, t=8, s=8):
  """Images of noise, each with the label it was drawn for."""
  for i in range(n):
    rng = np.random.default_rng(i)
    yield {
      f'{half}_{part}': rng.integers(0, high, (m, b, *shape)).astype(dtype)
      for half, b, classes in (('target', t, 3), ('source', s, 5))
      for part, high, shape, dtype in (
        ('image', 256, (8, 8, 3), np.uint8),
        ('label', classes, (), np.int32),
        ('index', 100, (), np.int64),
      )
    }


def fit(what, data, steps, state=None, **kwargs):
  over, variables, tx, step = what
  state = train.begin(variables, tx, over) if state is None else state
  return train.fit(state, step, data, steps=steps, mesh=over, **kwargs)


def assert_close(a, b, **kwargs):
  jax.tree.map(functools.partial(np.testing.assert_allclose, **kwargs), a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_eight_devices_are_one():
  seen = {1: [], 8: []}
  states = {
    n: fit(
      compiled(devices=n),
      batches(2),
      2,
      write=lambda _, metrics, n=n: seen[n].append(metrics),
    )
    for n in seen
  }
  assert_close(states[1].variables, states[8].variables, rtol=1e-4, atol=1e-5)
  assert_close(seen[1], seen[8], rtol=1e-4, atol=1e-5)
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(states[8]))


def test_a_loop_over_micro_batches_is_the_unrolled_program():
  states = [
    fit(compiled(unroll=unroll), batches(2, m=3, t=4, s=4), 2)
    for unroll in (True, False)
  ]
  assert_close(*(s.variables for s in states), rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up_to_the_batch():
  def joined(batch):
    return {k: x.reshape(1, -1, *x.shape[2:]) for k, x in batch.items()}

  what = compiled('linear')
  apart = fit(what, batches(3), 3)
  whole = fit(what, map(joined, batches(3)), 3)
  assert_close(apart.params, whole.params, rtol=1e-5, atol=1e-7)


def test_one_update_is_the_summed_loss_in_float64():
  """By hand for the linear trunk, batch by batch, Caffe's rule at the end."""
  what = compiled('linear', decay=0.01)
  params = jax.tree.map(np.float64, what[1]['params'])
  kernel = params['trunk']['Dense_0']['kernel']
  gradient = jax.tree.map(np.zeros_like, params)
  (batch,) = batches(1)
  for i, half in itertools.product(range(2), ('target', 'source')):
    head = params[f'{half}_head']
    image = batch[f'{half}_image'][i][..., ::-1] - np.array([104.0, 117, 123])
    x = image.reshape(8, -1) / 1000
    exp = np.exp(x @ kernel @ head['kernel'] + head['bias'])
    classes = exp.shape[1]
    softmax = exp / exp.sum(1, keepdims=True)
    error = (softmax - np.eye(classes)[batch[f'{half}_label'][i]]) / 8 / 2
    gradient[f'{half}_head']['bias'] += error.sum(0)
    gradient[f'{half}_head']['kernel'] += (x @ kernel).T @ error
    gradient['trunk']['Dense_0']['kernel'] += x.T @ error @ head['kernel'].T

  def updated(path, w, g):
    bias = path[-1].key == 'bias'
    return w - 0.05 * (2 * g if bias else g + 0.01 * w)

  expected = jax.tree.map_with_path(updated, params, gradient)
  found = fit(what, [batch], 1).params
  assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_without_a_source_half_its_head_never_changes():
  what = compiled(frozen=('source_head',))
  begin = jax.device_get(what[1]['params'])
  seen = []
  state = fit(
    what, batches(2, s=0), 2, write=lambda _, metrics: seen.append(metrics)
  )
  assert_equal(state.params['source_head'], begin['source_head'])
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)),
    (state.params['trunk'], state.params['target_head']),
    (begin['trunk'], begin['target_head']),
  )
  assert jax.tree.all(moved)
  assert seen[0].keys() == {
    'loss',
    'target_loss',
    'target_accuracy',
    'grad_norm',
    'learning_rate',
  }
  assert seen[0]['loss'] == seen[0]['target_loss']


def test_pretraining_is_the_same_step_without_a_target_half():
  what = compiled(frozen=('target_head',))
  begin = jax.device_get(what[1]['params'])
  state = fit(what, batches(1, t=0), 1)
  assert_equal(state.params['target_head'], begin['target_head'])
  assert np.any(
    state.params['source_head']['bias'] != begin['source_head']['bias']
  )


def test_both_heads_learn_a_few_images_by_heart():
  (batch,) = batches(1, m=1)
  seen = []
  fit(
    compiled(),
    itertools.repeat(batch, 80),
    80,
    write=lambda _, metrics: seen.append(metrics),
  )
  assert seen[-1]['target_accuracy'] == seen[-1]['source_accuracy'] == 1
  assert seen[-1]['loss'] < 0.1 * seen[0]['loss']


def test_resumed_is_uninterrupted(tmp_path):
  what = compiled()
  data = list(batches(5))
  straight = fit(what, data, 5)
  with checkpoints.Checkpoints(tmp_path) as saved:
    fit(
      what,
      data[:3],
      3,
      save=lambda n, state: saved.save(n, state, {}),
      save_every=2,
    )
  with checkpoints.Checkpoints(tmp_path) as saved:
    over, variables, tx, _ = what
    state, _ = saved.restore(train.begin(variables, tx, over))
    first = saved.step
  assert first == 3
  resumed = fit(what, data[first:], 5, state=state, first=first)
  assert_equal(straight, resumed)


def test_metrics_come_in_order_and_before_the_checkpoint():
  events = []
  fit(
    compiled(),
    batches(5),
    5,
    write=lambda n, metrics: events.append(('write', n)),
    save=lambda n, state: events.append(('save', n, int(state.step))),
    save_every=2,
  )
  assert [e[1] for e in events if e[0] == 'write'] == [1, 2, 3, 4, 5]
  saves = [e for e in events if e[0] == 'save']
  assert saves == [('save', 2, 2), ('save', 4, 4), ('save', 5, 5)]
  for _, n, _ in saves:
    assert events.index(('write', n)) < events.index(('save', n, n))


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint():
  what = compiled('linear', rate=1e30)
  written, saved = [], []
  with pytest.raises(UserError, match=r'step \d+ .*learning rate \(1e\+30'):
    fit(
      what,
      batches(9),
      9,
      write=lambda n, metrics: written.append(metrics['loss']),
      save=lambda n, state: saved.append(n),
      save_every=1,
    )
  assert np.isfinite(written).all()
  assert saved == list(range(1, len(written) + 1))


def test_the_bar_counts_images(monkeypatch):
  shown = []

  class Bar(contextlib.nullcontext):
    def __init__(self, total, label, initial):
      super().__init__(self)
      shown.append((total, label, initial))

    def update(self, images):
      shown.append(images)

  monkeypatch.setattr(train.progress, 'bar', Bar)
  fit(compiled(), batches(2), 3, first=1, label='round 3')
  # Two micro-batches of eight target and eight source images an update.
  assert shown == [(96, 'round 3', 32), 32, 32]


@pytest.mark.parametrize('count', [1, 3])
def test_a_batch_an_update(count):
  with pytest.raises(ValueError, match='One batch an update'):
    fit(compiled(), batches(count), 2)


def test_variables_outlive_the_training_they_begin():
  what = compiled()
  before = jax.device_get(what[1])
  fit(what, batches(1), 1)
  assert_equal(what[1], before)


def test_weights_follow_the_seed():
  model = two_heads.TwoHeads(TRUNKS['linear'], 3, 5)
  same, again, other = (train.init(model, seed, 8) for seed in (1, 1, 2))
  assert_equal(same, again)
  a, b = (v['params']['target_head']['kernel'] for v in (same, other))
  assert jnp.any(a != b)
