import contextlib
import functools

import jax
import numpy as np
import pytest

from configs import folders
from sjft_jax import evaluate, learn, mesh, recipes
from sjft_jax.data import datasets, pipelines
from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, resnet, trunks
from sjft_jax.models.convention import CAFFE, TORCHVISION


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """A trunk that compiles in a moment."""

  def stages(c, blocks=(1,)):
    return resnet.ResNet(
      blocks, c.width, c.stem, momentum=c.momentum, dtype=c.dtype
    )

  two = functools.partial(stages, blocks=(1, 1))
  monkeypatch.setitem(trunks.TRUNKS, 'tiny', stages)
  monkeypatch.setitem(trunks.TRUNKS, 'two stages', two)


def settings(**changes):
  c = folders.get_config()
  c.threads = 1
  c.model.trunk = 'tiny'
  c.model.width, c.model.stem = 0.0625, 'strided'
  c.train.resize = c.train.crop = 8
  c.train.target_batch = c.train.source_batch = 8
  c.train.steps = 2
  c.pretrain.steps = 0
  c.optim.boundaries = ()
  for name, value in changes.items():
    group, field = name.split('__') if '__' in name else (None, name)
    (c[group] if group else c)[field] = value
  return c


@functools.cache
def images(name, count):
  whole = datasets.open_pool({name: {'kind': 'packaged', 'name': 'digits'}})
  return whole.subset(np.arange(count))


def candidates(targets, sources):
  start = np.zeros(targets, np.int64)
  return pipelines.Candidates(
    index=np.arange(sources), start=start, stop=start + sources
  )


def trained(tmp_path, rounds=1, selected=True, **changes):
  """(learner, variables at the start, after each round) of a small run."""
  c = settings(**changes)
  learn.check(c, mesh.make(), tmp_path)
  learner = learn.Learner(c, 10, 10, mesh.make(jax.devices()[:1]), tmp_path)
  target, pool = images('t', 16), images('s', 24)
  drawn = candidates(16, 24) if selected else None
  found = [learner.start(pool, tmp_path / 'pretrain')]
  for m in range(rounds):
    directory = tmp_path / 'rounds' / str(m)
    with contextlib.suppress(FileExistsError):
      directory.mkdir(parents=True)
    found.append(
      learner.fine_tune(
        found[0], found[-1], target, pool, drawn, None, m, directory
      )
    )
  return learner, *map(jax.device_get, found)


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_selection_none_never_changes_the_source_head(tmp_path):
  learner, before, after = trained(tmp_path, selected=False, selection='none')
  before, after = before['params'], after['params']
  assert equal(before['source_head'], after['source_head'])
  assert not equal(before['target_head'], after['target_head'])
  assert not equal(before['trunk'], after['trunk'])
  restored = jax.device_get(learner.restore(tmp_path / 'rounds' / '0'))
  assert equal(restored['params'], after)


@pytest.mark.parametrize('source', [True, False])
def test_a_student_comes_nearer_to_its_teachers(tmp_path, source):
  learner, before, *teachers = trained(
    tmp_path, rounds=2, optim__learning_rate=0.05, distill__steps=20
  )
  target, pool = images('t', 16), images('s', 24)
  drawn = candidates(16, 24) if source else None
  directory = tmp_path / 'distilled'
  after = learner.distil(
    before, before, teachers, target, pool, drawn, directory
  )

  def answers(variables):
    return learner.posteriors(variables, target, 'centre', 'asked')

  wanted = evaluate.fuse([answers(teacher) for teacher in teachers])
  apart = [np.abs(answers(v) - wanted).mean() for v in (before, after)]
  assert apart[1] < 0.7 * apart[0]
  after = jax.device_get(after)
  # Labels of the source are not used, and the teachers stay.
  heads = [v['params']['source_head'] for v in (before, after)]
  assert equal(*heads)
  restored = jax.device_get(learner.restore(directory, distilled=True))
  assert equal(restored, after)


def test_frozen_stages_stay_and_adamw_with_a_cosine_moves_the_rest(tmp_path):
  _, before, after = trained(
    tmp_path,
    model__trunk='two stages',
    optim__rule='adamw',
    optim__schedule='cosine',
    optim__warmup=1,
    optim__frozen=('trunk/conv1', 'trunk/norm1', 'trunk/res2_*'),
  )
  before, after = before['params'], after['params']
  for part, value in before['trunk'].items():
    frozen = part in ('conv1', 'norm1') or part.startswith('res2')
    assert equal(value, after['trunk'][part]) == frozen, part
  assert not equal(before['source_head'], after['source_head'])


def test_l2_sp_decays_to_where_the_first_round_began(tmp_path):
  """With decay alone (rate 0.5, decay 1) the second round goes back, too."""
  changes = dict(
    optim__momentum=0.0,
    optim__weight_decay=1.0,
    optim__learning_rate=0.5,
    train__steps=1,
    train__target_weight=0.0,
    train__source_weight=0.0,
  )
  c = settings(optim__to_start=True, **changes)
  learner = learn.Learner(c, 10, 10, mesh.make(jax.devices()[:1]), tmp_path)
  target, pool = images('t', 16), images('s', 24)
  start = jax.device_get(learner.start(pool, tmp_path / 'pretrain'))
  moved = start | {'params': jax.tree.map(lambda x: x + 1.0, start['params'])}
  for m, distance in enumerate((0.5, 0.25)):
    directory = tmp_path / 'rounds' / str(m)
    moved = learner.fine_tune(
      start, moved, target, pool, candidates(16, 24), None, m, directory
    )
    jax.tree.map(
      lambda a, b, d=distance: np.testing.assert_allclose(a - b, d, atol=1e-5),
      moved['params']['trunk'],
      start['params']['trunk'],
    )


def test_the_rate_follows_the_round(tmp_path):
  trained(tmp_path, rounds=3, optim__round_factors=(1.0, 0.5))
  rates = [
    float(line.split('"learning_rate": ')[1].split(',')[0].rstrip('}\n'))
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  np.testing.assert_allclose(rates, 0.01 * np.repeat([1, 0.5, 0.5], 2))


def test_a_frozen_part_that_does_not_exist_is_refused_at_once(tmp_path):
  c = settings(optim__frozen=('trunk/res9_*',))
  with pytest.raises(UserError, match=r"'trunk/res9_.*trunk/res2_0"):
    learn.check(c, mesh.make(), tmp_path)


def test_something_is_left_to_learn(tmp_path):
  for frozen in (('*',), ('trunk', 'target_head', 'source_head')):
    with pytest.raises(UserError, match='leaves nothing of the network'):
      learn.check(settings(optim__frozen=frozen), mesh.make(), tmp_path)
  learn.check(settings(optim__frozen=('trunk',)), mesh.make(), tmp_path)


def test_a_network_is_fed_what_its_weights_want(tmp_path):
  devices = mesh.make(jax.devices()[:1])
  plain = learn.Learner(settings(), 2, 3, devices, tmp_path / 'plain')
  assert plain.network.convention == CAFFE
  weights = tmp_path / 'weights.safetensors'
  saved = jax.tree.map(lambda x: x + 1, plain.fresh(0))
  pretrained.save(weights, saved, network='tiny', convention=TORCHVISION)
  c = settings(model__weights=str(weights))
  learn.check(c, devices, tmp_path / 'run')
  learner = learn.Learner(c, 2, 3, devices, tmp_path / 'run')
  assert learner.network.convention == TORCHVISION
  found = learner.start(None, tmp_path / 'run' / 'pretrain')
  assert equal(found['params']['trunk'], saved['params']['trunk'])
  # A trained network is asked when its first weights may be gone.
  weights.unlink()
  again = learn.Learner(c, 2, 3, devices, tmp_path / 'run')
  assert again.network.convention == TORCHVISION
  with pytest.raises(UserError, match='No weights can be read from'):
    learn.check(c, devices, tmp_path / 'run')


def test_source_answers_are_the_heads_product_of_the_feature(tmp_path):
  learner, _, after = trained(tmp_path)
  logits_nc, feature_nf = learner.source_answers(after, images('s', 24))
  assert len(logits_nc) == len(feature_nf) == 24
  head = after['params']['source_head']
  np.testing.assert_allclose(
    feature_nf.astype(np.float32) @ head['kernel'] + head['bias'],
    logits_nc,
    atol=2e-3,
  )


def test_a_pretrained_trunk_depends_on_what_its_weights_hold(tmp_path):
  def key(name, data):
    path = tmp_path / name
    path.write_bytes(data)
    c = settings(pretrain__steps=1, model__weights=str(path))
    return learn._pretraining_key(c, images('s', 2))

  first = key('a', b'1')
  assert first == key('b', b'1')
  assert first != key('a', b'2')


def test_pretraining_decays_by_a_weight_of_its_own():
  def key(**changes):
    return learn._pretraining_key(settings(**changes), images('s', 2))

  assert key() == key(optim__weight_decay=0.5)
  assert key() != key(pretrain__weight_decay=0.5)

  params = {'trunk': {'kernel': np.ones(3, np.float32)}}

  def update(**changes):
    c = settings(pretrain__steps=2, pretrain__warmup=0, **changes)
    optimiser = recipes.pretraining(c, ()).optimiser
    start = jax.jit(optimiser.init)(params)
    return jax.jit(optimiser.update)(params, start, params)[0]

  assert equal(update(), update(optim__weight_decay=0.5))
  assert not equal(update(), update(pretrain__weight_decay=0.5))
