import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

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
  'resnet': resnet.ResNet(
    (1,), width=1 / 16, stem='small', momentum=0.9, axis_name=mesh.AXIS
  ),
  'per device': resnet.ResNet(
    (1,), width=1 / 16, stem='small', momentum=0.9, axis_name=None
  ),
  'release': resnet.ResNet((1,), width=1 / 32),
}


@functools.cache
def compiled(
  trunk='resnet',
  devices=1,
  frozen=(),
  rate=0.05,
  scan=False,
  decay=1e-4,
  drops=(),
  sharded=False,
):
  """(mesh, variables, optimiser, step) of a tiny network."""
  model = two_heads.TwoHeads(TRUNKS[trunk], target_classes=3, source_classes=5)
  over = mesh.make(jax.devices()[:devices])
  schedule = optim.step_schedule(rate, drops)
  tx = optim.sgd(schedule, frozen=frozen, weight_decay=decay)
  step = train.make_step(model, tx, schedule, over, scan=scan, sharded=sharded)
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


@pytest.mark.parametrize('trunk', ['linear', 'resnet'])
def test_eight_devices_have_the_gradient_of_one(trunk):
  # After one update without decay the momentum is the gradient by the rate.
  momenta = [
    fit(compiled(trunk, devices=n, decay=0.0), batches(1), 1).opt_state
    for n in (1, 8)
  ]
  for one, eight in zip(*map(jax.tree.leaves, momenta), strict=True):
    largest = np.abs(one).max()
    assert np.abs(np.asarray(eight) - one).max() <= 1e-5 * largest
  # Not of the counts of updates, which it holds, too.
  moved = [x for x in jax.tree.leaves(momenta[0]) if x.dtype == np.float32]
  assert max(np.abs(x).max() for x in moved) > 1e-3


@pytest.mark.parametrize('scan', [True, False])
def test_sharded_parameters_train_the_same(monkeypatch, scan):
  monkeypatch.setattr(mesh, '_SPLIT_LEAST', 8)
  states = []
  for sharded, loop in ((False, False), (True, scan)):
    what = compiled(devices=4, scan=loop, sharded=sharded)
    over, variables, tx, _ = what
    state = train.begin(variables, tx, over, sharded=sharded)
    states.append(fit(what, batches(2), 2, state=state))
  near = dict(rtol=1e-4, atol=1e-5) if scan else dict(rtol=1e-5, atol=1e-6)
  assert_close(*(s.variables for s in states), **near)
  assert_close(*(s.opt_state for s in states), **near)
  # A quarter, but for what four do not divide.
  held = [
    sum(x.addressable_data(0).size for x in jax.tree.leaves(s)) for s in states
  ]
  assert held[1] < held[0] / 3


def test_statistics_per_device_are_those_of_its_own_images():
  """Eight devices with the same two images each know what one knows."""
  once = list(batches(1, t=1, s=1))
  eight = [
    {name: np.repeat(x, 8, axis=1) for name, x in batch.items()}
    for batch in once
  ]
  expected = fit(compiled('per device'), once, 1)
  assert_close(
    fit(compiled('per device', devices=8), eight, 1).params,
    expected.params,
    rtol=1e-4,
    atol=1e-5,
  )
  # Of other images each, its statistics are its own, and the averages the mean.
  data = list(batches(1))
  parts = [
    {name: x[:, i : i + 1] for name, x in data[0].items()} for i in range(8)
  ]
  found = fit(compiled('per device', devices=8), data, 1)
  alone = [fit(compiled('per device'), [part], 1) for part in parts]
  mean = jax.tree.map(lambda *x: sum(x) / 8, *(s.variables for s in alone))
  assert_close(found.variables, mean, rtol=1e-4, atol=1e-5)


def test_a_loop_inside_the_program_is_the_program_called_again():
  states = [
    fit(what, batches(2), 2) for what in (compiled(scan=True), compiled())
  ]
  assert_close(*(s.variables for s in states), rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up_to_the_batch():
  def joined(batch):
    return {k: x.reshape(1, -1, *x.shape[2:]) for k, x in batch.items()}

  what = compiled('linear')
  apart = fit(what, batches(3), 3)
  whole = fit(what, map(joined, batches(3)), 3)
  assert_close(apart.params, whole.params, rtol=1e-5, atol=1e-7)


def test_two_updates_are_caffes_of_the_summed_loss_in_float64():
  """Across a drop of the rate; the gradient by central differences."""
  decay, rates = 0.01, (0.05, 0.005)
  what = compiled('release', decay=decay, drops=(1,))
  data = list(batches(2, t=4, s=4))
  flat = traverse_util.flatten_dict(what[1]['params'], sep='/')
  w = {name: np.float64(x) for name, x in flat.items()}
  v = dict.fromkeys(w, 0.0)
  for rate, batch in zip(rates, data, strict=True):
    losses = functools.partial(summed_loss, batch=batch)
    gradient = central_differences(losses, w)
    for name, g in gradient.items():
      head_bias = name.endswith('head/bias')
      g = g / 2 + (0 if head_bias else decay) * w[name]
      v[name] = 0.9 * v[name] + rate * (2 if head_bias else 1) * g
    w = {name: w[name] - v[name] for name in w}
  found = traverse_util.flatten_dict(fit(what, data, 2).params, sep='/')
  for name in w:
    scale = np.abs(w[name]).max()
    np.testing.assert_allclose(found[name], w[name], rtol=0, atol=1e-5 * scale)
    assert np.abs(found[name] - flat[name]).max() > 5e-4 * scale


def summed_loss(w, batch):
  """Both cross-entropies, summed over the micro-batches, from NumPy alone."""
  total = 0.0
  for i in range(len(batch['target_label'])):
    images = [batch[f'{half}_image'][i] for half in ('target', 'source')]
    x = np.concatenate(images)[..., ::-1] - np.array([104.0, 117, 123])
    feature = released_block(w, x)
    for half, f in zip(('target', 'source'), np.split(feature, 2), strict=True):
      logits = f @ w[f'{half}_head/kernel'] + w[f'{half}_head/bias']
      label = batch[f'{half}_label'][i]
      chosen = np.take_along_axis(logits, label[:, None], 1)[:, 0]
      total += (np.log(np.exp(logits).sum(1)) - chosen).mean()
  return total


def released_block(w, x):
  """Stem, pool and one bottleneck of the release, by batch statistics."""

  def act(x, name):
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    name = f'trunk/{name}'
    return np.maximum(x * w[f'{name}/scale'] + w[f'{name}/bias'], 0)

  def conv(x, name, stride=1):
    kernel = w[f'trunk/{name}/kernel']
    if kernel.ndim == 2:
      return x @ kernel
    side = len(kernel)
    around = [(0, 0), *[(side // 2,) * 2] * 2, (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(
      np.pad(x, around), (side, side), (1, 2)
    )[:, ::stride, ::stride]
    return np.einsum('nhwiab,abio->nhwo', windows, kernel, optimize=True)

  x = act(conv(x, 'conv1', 2), 'norm1')
  # 4 x 4 to 2 x 2: the second windows are cut.
  halves = [x[:, :3], x[:, 2:]]
  x = np.stack(
    [
      np.stack([part.max(1)[:, :3].max(1), part.max(1)[:, 2:].max(1)], 1)
      for part in halves
    ],
    axis=1,
  )
  y = act(conv(x, 'res2_0/branch2a'), 'res2_0/norm2a')
  y = act(conv(y, 'res2_0/branch2b'), 'res2_0/norm2b')
  x = conv(x, 'res2_0/branch1') + conv(y, 'res2_0/branch2c')
  return act(x, 'norm5').mean((1, 2))


def central_differences(function, w, step=1e-6):
  gradient = {}
  for name, value in w.items():
    slopes = np.empty(value.size)
    for i in range(value.size):
      ends = []
      for sign in (1, -1):
        moved = value.copy()
        moved.flat[i] += sign * step
        ends.append(function(w | {name: moved}))
      slopes[i] = (ends[0] - ends[1]) / (2 * step)
    gradient[name] = slopes.reshape(value.shape)
  return gradient


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


def test_forty_target_images_and_two_source_classes_are_learnt_by_heart():
  (batch,) = batches(1, m=1, t=40, s=40)
  batch['source_label'] %= 2
  what = compiled(drops=(180,))
  seen = []
  state = fit(
    what,
    itertools.repeat(batch, 240),
    240,
    write=lambda _, metrics: seen.append(metrics),
  )
  assert seen[-1]['target_accuracy'] == seen[-1]['source_accuracy'] == 1
  assert seen[0]['target_accuracy'] < 0.7
  # And without the statistics of the batch.
  model = two_heads.TwoHeads(TRUNKS['resnet'], 3, 5)
  logits = model.apply(
    state.variables,
    batch['target_image'][0],
    batch['source_image'][0],
    train=False,
  )
  for half, found in zip(('target', 'source'), logits, strict=True):
    np.testing.assert_array_equal(found.argmax(1), batch[f'{half}_label'][0])


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
