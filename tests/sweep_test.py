"""A whole comparison at small size: tuning, averages, resuming, refusals."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from configs.sweeps import unrelated
from sjft_jax import (
  arms,
  evaluate,
  experiment,
  files,
  mesh,
  rounds,
  tuning,
  workdirs,
)
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from sjft_jax.models import frozen, trunks
from tests import digits

ROOT = pathlib.Path(__file__).parent.parent


def one_device():
  return mesh.make(jax.devices()[:1])


def small():
  """Digits, two images a class, and 60 of MNIST; one network for all arms."""
  c = default.get_config()
  c.target.kind, c.target.name, c.target.per_class = 'packaged', 'digits', 2
  c.source = ConfigDict(
    dict(mnist=default.source(kind='packaged', name='mnist', quota=60))
  )
  c.guard.enabled = False
  c.model.trunk = 'squeezenet_v1_0'
  c.train.resize, c.train.crop, c.train.micro_batches = 36, 33, 1
  c.train.target_batch = c.train.source_batch = 8
  c.optim.schedule = 'cosine'
  c.evaluate.batch = 512
  c.rounds, c.seeds = 2, 4
  c.tune.folds, c.tune.steps, c.tune.learning_rates = 2, (2, 4), (0.1, 0.01)
  c.order = ('plain', 'picked', 'both')
  c.arms = ConfigDict(
    dict(
      picked=dict(title='Picked', published=12.5),
      both=dict(title='Fused', average=('picked',), all_rounds=True),
      plain=dict(title='Plain', set=dict(selection='none')),
    )
  )
  return c


def answer_at_random(c, workdir, mesh, donors=()):
  """Leaves what a run leaves, without a network; a better one at 0.01."""
  del mesh, donors
  page = workdir / 'report' / 'index.html'
  if page.exists():
    return files.read_json(workdir / 'results.json')
  train, test = datasets.open_target(c.target, c.seed)
  rng = np.random.default_rng([c.seed, c.target.fold, c.selection == 'none'])
  answers, rows = [], []
  for m in range(c.rounds):
    answers.append(rng.dirichlet(np.ones(10), len(test)))
    likely = rng.random(len(test)) < 0.2 + (c.optim.learning_rate == 0.01) / 4
    answers[m][np.flatnonzero(likely), test.labels[likely]] += 1
    with files.replacing(workdir / 'rounds' / str(m) / 'posteriors.npz') as f:
      np.savez(
        f,
        train_id=train.ids,
        train_label=train.labels,
        train_probability=np.zeros((len(train), 10), np.float32),
        test_id=test.ids,
        test_label=test.labels,
        test_probability=answers[m],
      )
    right = evaluate.mean_class_accuracy(answers[m], test.labels)
    row = {'round': m, 'mean_class_accuracy': right, 'mean_k': 3.0}
    rows.append(row | {'images_selected': {'mnist': 7}})
  fused = evaluate.mean_class_accuracy(evaluate.fuse(answers), test.labels)
  value = {
    'rounds': rows,
    'seconds': {'train': 1.0},
    'mean_class_accuracy': right,
    'fused': {'mean_class_accuracy': fused},
  }
  files.write_json(workdir / 'config.json', {'settings': c.to_dict()})
  described = {'classes': train.classes, 'train': len(train)}
  files.write_json(workdir / 'data.json', {'target': described})
  files.write_json(workdir / 'results.json', value)
  with files.replacing(page, 'w') as file:
    file.write('finished')
  return value


def results(workdir):
  value = json.loads((workdir / 'results.json').read_text())
  value.pop('seconds')
  return value


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sweep') / 'whole'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rounds, 'run', answer_at_random)
    experiment.run(small(), workdir, one_device())
  return workdir


def test_the_table_is_in_the_order_asked_for(finished):
  value = results(finished)['arms']
  assert list(value) == ['plain', 'picked', 'both']
  assert {arm['difference_to'] for arm in value.values()} == {'plain'}
  for arm in value.values():
    difference = np.subtract(
      arm['mean_class_accuracy'], value['plain']['mean_class_accuracy']
    )
    np.testing.assert_allclose(arm['difference'], difference)
    low, high = arm['difference_interval']
    assert low <= arm['difference_mean'] <= high
  assert value['picked']['published'] == 12.5
  page = (finished / 'report' / 'index.html').read_text(encoding='utf-8')
  assert '12.5' in page
  assert 'Fused' in page


def test_an_average_is_that_of_all_rounds_of_another_arm(finished):
  value = results(finished)['arms']
  assert value['both']['mean_class_accuracy'] == value['picked']['fused']
  assert not list((finished / 'runs').glob('both-*'))


def test_an_arm_runs_with_what_was_best_on_its_folds(finished):
  tuned = json.loads((finished / 'tuning.json').read_text())
  assert tuned == results(finished)['tuning']
  assert list(tuned) == ['plain', 'picked']
  for arm, found in tuned.items():
    # The rates at the first length, then the other lengths at the best rate.
    pairs = [(row['steps'], row['learning_rate']) for row in found['tried']]
    assert pairs == [(2, 0.1), (2, 0.01), (4, 0.01)]
    means = [np.mean(row['mean_class_accuracy']) for row in found['tried']]
    best = found['tried'][int(np.argmax(means))]
    assert found['chosen'] == {
      'steps': best['steps'],
      'learning_rate': 0.01,
    }
    for seed in range(4):
      path = finished / 'runs' / f'{arm}-{seed}' / 'config.json'
      settings = json.loads(path.read_text())['settings']
      assert settings['optim']['learning_rate'] == 0.01
      assert settings['train']['steps'] == best['steps'] // 2
      assert settings['seed'] == seed


def test_trials_are_among_the_seconds_also_of_a_resumed_sweep(
  finished, tmp_path, monkeypatch
):
  # Two arms of three choices on two folds; two arms of four seeds.
  spent = {'tuning': 12.0, 'train': 8.0}
  whole = json.loads((finished / 'results.json').read_text())
  assert whole['seconds'] == spent
  workdir = shutil.copytree(finished, tmp_path / 'resumed')
  shutil.rmtree(workdir / 'report')
  (workdir / 'results.json').unlink()
  (workdir / 'tuning.json').unlink()
  monkeypatch.setattr(rounds, 'run', answer_at_random)
  experiment.run(small(), workdir, one_device())
  assert json.loads((workdir / 'results.json').read_text()) == whole


def test_no_fold_holds_a_test_image(finished):
  train, test = datasets.open_target(small().target, 0)
  tested = set()
  for path in (finished / 'tuning').glob('plain-4-0.01-*/rounds/1/*.npz'):
    with np.load(path) as file:
      ids = file['test_id'].tolist()
      assert not tested & set(ids)
      assert not set(ids) & set(file['train_id'].tolist())
      tested |= set(ids)
  assert tested == set(train.ids.tolist())
  assert not tested & set(test.ids.tolist())


def choosing(tmp_path, monkeypatch, right):
  """(tuning.json's value, settings of all trials); `right` is of settings."""
  trials = []

  def answer(c, workdir, mesh, donors=()):
    del mesh, donors
    assert c.target.folds == 5
    trials.append((workdir.name, c))
    return {'mean_class_accuracy': right(c)}

  monkeypatch.setattr(rounds, 'run', answer)
  c = small()
  c.tune.folds = 5
  c.budget.initial, c.budget.maximum = 10, 40
  c.tune.initial = (10, 5, 15)
  with c.unlocked():
    c.tune.banks = dict(coarse=dict(bins=4), fine=dict(bins=16))
  c.tune.source_weights = (1.0, 0.3, 0.0)
  own = arms.settings_of(c, 'picked', 0)
  tuning.check(c, 'picked', own)
  found = tuning.tune(c, 'picked', own, tmp_path, None, [])
  return c, found, trials


def test_one_setting_after_the_other_is_tried(tmp_path, monkeypatch):
  def right(c):
    wanted = (c.budget.initial == 15) + (c.describe.bins == 16)
    return 0.1 * wanted + 0.05 * (c.train.source_weight == 0.3)

  c, found, trials = choosing(tmp_path, monkeypatch, right)
  assert found['chosen'] == {
    'learning_rate': 0.1,
    'steps': 2,
    'initial': 15,
    'bank': 'fine',
    'source_weight': 0.3,
  }
  # 1 + 1 rate + 1 length + 2 K0 + 1 bank + 1 weight, and 3 without a source.
  assert len(found['tried']) == 10
  assert len({name for name, _ in trials}) == len(trials) == 50
  for _, own in trials:
    if own.selection != 'none':
      assert own.budget.maximum == 4 * own.budget.initial
      assert own.budget.depth == 60
  chosen = arms.settings_of(c, 'picked', 3, {'picked': found})
  assert (chosen.budget.initial, chosen.describe.bins) == (15, 16)
  assert (chosen.train.source_weight, chosen.seed) == (0.3, 3)


def test_a_source_that_hurts_is_dropped(tmp_path, monkeypatch):
  def right(c):
    return 0.5 + 0.1 * (c.selection == 'none') * c.optim.learning_rate

  c, found, _ = choosing(tmp_path, monkeypatch, right)
  # The best rate without a source is found anew.
  assert found['chosen'] == {
    'learning_rate': 0.1,
    'steps': 2,
    'source_weight': 0.0,
  }
  # Then it is the arm that never had a source, to the last setting, and so to
  # the last bit.
  tuned = {'picked': found}
  tuned['plain'] = tuning.tune(
    c, 'plain', arms.settings_of(c, 'plain', 0), tmp_path, None, []
  )
  for seed in range(2):
    chosen, plain = (arms.settings_of(c, a, seed, tuned) for a in tuned)
    assert chosen.to_dict() == plain.to_dict()


def test_of_equals_the_source_weighs_least(tmp_path, monkeypatch):
  _, found, _ = choosing(tmp_path, monkeypatch, lambda c: 0.5)
  assert found['chosen']['source_weight'] == 0


@pytest.mark.parametrize(
  ('gains', 'weight'),
  [
    # Means of 0.01: of folds that agree, and of some that do not.
    ((0.008, 0.012, 0.009, 0.011, 0.010), 0.3),
    ((0.06, -0.04, 0.05, -0.03, 0.01), 0.0),
  ],
)
def test_borrowing_has_to_gain_more_than_folds_differ(
  tmp_path, monkeypatch, gains, weight
):
  def right(c):
    return 0.5 + gains[c.target.fold] * (c.train.source_weight == 0.3)

  _, found, _ = choosing(tmp_path, monkeypatch, right)
  assert found['chosen']['source_weight'] == weight
  low, high = found['gain']
  assert low < 0.01 < high
  assert (low > 0) == (weight > 0)


def test_of_equal_means_the_lower_weight_wins_in_any_order_of_the_folds():
  # Means of 0.87, in float64 of two different last bits.
  right = {
    1.0: [0.9, 0.825, 0.9, 0.825, 0.9],
    0.3: [0.9, 0.8, 0.9, 0.875, 0.875],
    0.1: [0.925, 0.8, 0.875, 0.875, 0.875],
  }
  rng = np.random.default_rng(0)
  for _ in range(20):
    rows = [
      ({'source_weight': weight}, rng.permutation(folds).tolist())
      for weight, folds in right.items()
    ]
    assert tuning.chosen(rows)[0] == {'source_weight': 0.1}
  rows = [({'source_weight': w}, folds) for w, folds in right.items()]
  assert tuning.chosen(rows)[0] == {'source_weight': 0.1}


def test_a_source_without_effect_is_seldom_kept():
  kept = 0
  for seed in range(400):
    # Five folds of forty images, four in five of which every choice gets right;
    # the best of three weights against fine-tuning without a source.
    right = np.random.default_rng(seed).binomial(40, 0.8, (4, 5)) / 40
    weights = ({'source_weight': w} for w in (1.0, 0.3, 0.1, 0.0))
    best, _ = tuning.chosen([*zip(weights, right.tolist(), strict=True)])
    kept += best['source_weight'] > 0
  # Nominal: one in forty for one weight.
  assert kept < 30


def test_the_sweep_of_an_unrelated_source_can_lose_nothing():
  c = unrelated.get_config()
  choice = dict(steps=100, learning_rate=0.01, source_weight=0.0)
  tuned = {'falling': {'chosen': choice}}
  given_up, plain = (
    arms.settings_of(c, arm, 3, tuned).to_dict()
    for arm in ('falling', 'fine_tuning')
  )
  assert given_up == plain


def test_an_arm_may_be_tuned_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(rounds, 'run', answer_at_random)
  c = small()
  c.seeds, c.tune.folds = 2, 0
  c.arms.picked.tune = dict(folds=2)
  value = arms.compare(c, tmp_path, one_device())
  assert list(value['tuning']) == ['picked']
  path = tmp_path / 'runs' / 'plain-0' / 'config.json'
  settings = json.loads(path.read_text())['settings']
  assert settings['train'] == small().train.to_dict()


def test_what_an_arm_sets_is_not_tried(tmp_path, monkeypatch):
  c = small()
  c.tune.initial = (10, 5)
  with c.unlocked():
    c.tune.banks = dict(coarse=dict(bins=4))
  c.arms.picked = ConfigDict(
    dict(title='', set=dict(budget=dict(initial=7), describe=dict(bins=9)))
  )
  names = []

  def answer(c, workdir, mesh, donors=()):
    names.append((c.budget.initial, c.describe.bins))
    return {'mean_class_accuracy': 0.5}

  monkeypatch.setattr(rounds, 'run', answer)
  own = arms.settings_of(c, 'picked', 0)
  tuning.tune(c, 'picked', own, tmp_path, None, [])
  assert set(names) == {(7, 9)}


def test_an_arm_keeps_the_weight_of_the_source_that_it_sets(
  tmp_path, monkeypatch
):
  c = small()
  c.tune.source_weights = (1.0, 0.3)
  c.arms.picked = ConfigDict(
    dict(title='', set=dict(train=dict(source_weight=0.7)))
  )
  weights = []

  def answer(c, workdir, mesh, donors=()):
    weights.append(c.train.source_weight)
    return {'mean_class_accuracy': 0.5}

  monkeypatch.setattr(rounds, 'run', answer)
  own = arms.settings_of(c, 'picked', 0)
  found = tuning.tune(c, 'picked', own, tmp_path, None, [])
  assert set(weights) == {0.7}
  assert 'source_weight' not in found['chosen']


def test_an_arm_keeps_the_rate_and_the_length_that_it_sets(
  tmp_path, monkeypatch
):
  c = small()
  set_ = dict(optim=dict(learning_rate=0.3), train=dict(steps=5))
  c.arms.picked = ConfigDict(dict(title='Picked', set=set_))
  pairs = []

  def answer(c, workdir, mesh, donors=()):
    pairs.append((c.optim.learning_rate, c.train.steps))
    return {'mean_class_accuracy': 0.5}

  monkeypatch.setattr(rounds, 'run', answer)
  own = arms.settings_of(c, 'picked', 0)
  found = tuning.tune(c, 'picked', own, tmp_path, None, [])
  assert set(pairs) == {(0.3, 5)}
  # Two rounds.
  assert found['chosen'] == {'learning_rate': 0.3, 'steps': 10}
  tuned = arms.settings_of(c, 'picked', 0, {'picked': found})
  assert tuned.to_dict() == own.to_dict()
  # Then there is nothing to try.
  assert not tuning.is_open(c, 'picked', own)
  assert tuning.is_open(c, 'plain', arms.settings_of(c, 'plain', 0))
  # One of the two may be set, and the other tuned.
  c.arms.picked.set = ConfigDict(dict(optim=dict(learning_rate=0.3)))
  own = arms.settings_of(c, 'picked', 0)
  found = tuning.tune(c, 'picked', own, tmp_path, None, [])
  assert [row['steps'] for row in found['tried']] == [2, 4]


def test_values_are_not_needed_of_what_all_arms_set():
  c = small()
  c.tune.learning_rates = ()
  c.arms.plain.set.optim = dict(learning_rate=0.1)
  c.arms.picked.set = dict(optim=dict(learning_rate=0.01))
  arms.check(c)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'optim': {'frozen': ('trunk/res9*',)}}, "arms.plain: .*'trunk/res9.'"),
    ({'train': {'target_batch': 9}}, 'arms.plain: .* must be a multiple'),
  ],
)
def test_the_last_arm_is_refused_before_the_first_begins(
  tmp_path, monkeypatch, changes, said
):
  monkeypatch.setattr(rounds, 'run', answer_at_random)
  c = small()
  c.order, c.tune.folds = (), 0
  c.arms.plain.set = dict(selection='none') | changes
  with pytest.raises(UserError, match=said):
    arms.compare(c, tmp_path, mesh.make(jax.devices()[:2]))
  assert not list(tmp_path.iterdir())


def test_a_title_may_be_mended_in_a_resumed_sweep(tmp_path, monkeypatch):
  monkeypatch.setattr(rounds, 'run', answer_at_random)
  c, workdir = small(), tmp_path / 'sweep'
  c.seeds, c.tune.folds = 2, 0
  c.arms.picked.title, c.arms.picked.published = 'Pikced', 125
  experiment.run(c, workdir, one_device())
  c.arms.picked.title, c.arms.picked.published = 'Picked', 12.5
  experiment.run(c, workdir, one_device())
  value = results(workdir)['arms']['picked']
  assert (value['title'], value['published']) == ('Picked', 12.5)
  page = workdir / 'report' / 'index.html'
  assert 'Pikced' not in page.read_text()
  config = json.loads((workdir / 'config.json').read_text())
  assert config['settings'] == json.loads(json.dumps(c.to_dict()))
  # What an arm does is bound.
  shutil.rmtree(workdir / 'report')
  c.arms.both.all_rounds = False
  with pytest.raises(UserError, match=r'arms\.both\.all_rounds was True'):
    experiment.run(c, workdir, one_device())


def test_a_killed_sweep_does_no_finished_run_again(
  tmp_path, capsys, monkeypatch
):
  layers = frozen.Conv('conv1', 8, 3, stride=2), frozen.Fire('fire2', 4, 8)
  tiny = frozen.Network(layers, default=('conv1',))
  monkeypatch.setitem(
    trunks.TRUNKS, 'squeezenet_v1_0', lambda c: trunks.Plain(tiny)
  )
  c, workdir = small(), tmp_path / 'sweep'
  devices = mesh.make(jax.devices()[:1])
  # A fold of few images in place of the test set.
  c.target.folds = 2
  c.rounds, c.seeds, c.tune.folds, c.train.steps = 1, 2, 0, 1
  c.arms.picked = ConfigDict(
    dict(title='Alike', set=dict(selection='none', max_bad_fraction=0.5))
  )
  experiment.run(c, workdir, devices)
  whole = results(workdir)
  shutil.rmtree(workdir / 'report')
  shutil.rmtree(workdir / 'runs' / 'picked-1')
  (workdir / 'results.json').unlink()
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file()}
  experiment.run(c, workdir, devices)
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert results(workdir) == whole
  capsys.readouterr()
  experiment.run(c, workdir, devices)
  assert 'nothing was done' in capsys.readouterr().out


def test_the_page_is_of_the_images_that_its_run_had(tmp_path):
  data = digits.write(tmp_path, train=(0, 6), test=(10, 16), source=(20, 50))
  c = default.get_config()
  c.target.train, c.target.test = str(data / 'train'), str(data / 'test')
  c.source.main.dir = str(data / 'source')
  whole, _ = datasets.open_target(c.target, c.seed)
  pool = datasets.open_pool(c.source)
  for name, lines in (('a', ()), ('b', (f'{whole.ids[2]},truncated',))):
    run = tmp_path / name
    (run / 'guard').mkdir(parents=True)
    (run / 'bad_images.csv').write_text('\n'.join(('id,reason', *lines)))
    record = {'withheld': pool.ids[:2].tolist()}
    (run / 'guard/record.json').write_text(json.dumps(record))
    train, left = experiment.seen(c, run)
    kept = np.delete(whole.ids, [2] if lines else [])
    assert train.ids.tolist() == kept.tolist()
    assert left.ids.tolist() == pool.ids[2:].tolist()
  # Where nothing is borrowed there need be no source.
  c.selection, c.source.main.dir = 'none', '/nowhere'
  assert experiment.seen(c, run)[1] is None


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'seeds': 1}, 'seeds >= 2'),
    ({'order': ('plain', 'both')}, 'every arm once'),
    ({'order': ('plain', 'plain', 'picked', 'both')}, 'every arm once'),
    (
      {'arms.picked.sets': {}},
      'arms.picked needs a title and takes title, set',
    ),
    ({'arms.both.average': ('best',)}, r'trained \(plain, picked\), not best'),
    ({'arms.both.average': ('both',)}, r'trained \(plain, picked\), not both'),
    ({'arms.both.average': ()}, 'not none'),
    ({'arms.plain.set': {'rounds': 0}}, 'plain needs rounds >= 1'),
    ({'arms.both.distilled': True}, 'distill.steps above 0 in picked'),
    ({'tune.folds': 1}, 'folds >= 2'),
    ({'tune.learning_rates': ()}, 'values of learning_rates'),
    ({'tune.steps': (0,)}, 'train.steps must be at least 1'),
    ({'tune.steps': (4, 5)}, 'that the 2 rounds of arms.p.* evenly; came 5'),
    ({'arms': {'a/b': {'title': 'A'}}, 'order': ()}, "digits; came 'a/b'"),
    ({'tune.learning_rates': (0.0,)}, 'learning_rate must be above 0'),
    ({'optim.warmup': 1}, 'optim.warmup must be below 1'),
    ({'optim.schedule': 'step'}, 'schedule=cosine'),
    ({'tune.source_weights': (0.3, 1.0)}, 'must fall'),
    ({'tune.source_weights': (0.0,)}, 'must fall'),
    ({'tune.source_weights': (1.0, -0.1)}, 'must fall'),
    ({'tune.source_weights': (1.0, 0.0)}, 'folds >= 5'),
    ({'tune.initial': (0,)}, 'numbers of neighbours'),
    ({'target.folds': 2}, r'^tune cuts folds of its own .*folds=0; came 2'),
    ({'tune.banks': {'a/b': {}}}, 'letters and digits'),
    ({'tune.banks': {'a': {'bins': 1}}}, 'bins must be at least 2'),
    ({'tune.banks': {'a': {'beans': 9}}}, 'tune.banks.a names beans'),
    ({'arms.picked.tune': {'faults': 2}}, 'picked.tune names faults'),
    ({'arms.picked.tune': 2}, 'arms.picked.tune needs .*; came 2'),
    ({'tune.steps': (1e3,)}, r'^tune.steps needs whole .*; came \(1000.0,\)'),
    ({'tune.steps': ('a',)}, r"tune.steps needs whole .*; came \('a',\)"),
    ({'tune.learning_rates': ('0.1',)}, 'learning_rates needs numbers'),
    ({'tune.learning_rates': (True,)}, 'learning_rates needs numbers'),
    ({'tune.source_weights': ('1', 0.3)}, 'source_weights needs numbers'),
    ({'tune.initial': (10.0,)}, 'numbers of neighbours'),
    ({'tune.banks': {'a': 9}}, 'tune.banks.a needs .*; came 9'),
    ({'arms.picked.tune': {'steps': (2.5,)}}, r'^arms.picked.tune.steps needs'),
    ({'arms.picked.title': ' '}, "picked.title needs a text; came ' '"),
    ({'arms.plain.published': '12'}, "published needs a number.* came '12'"),
    ({'arms.plain.published': float('nan')}, 'published needs a number'),
    ({'arms.plain.published': True}, 'published needs a number'),
    ({'arms.picked.all_rounds': True}, 'picked has no average.* all_rounds'),
    ({'arms.picked.distilled': True}, 'picked has no average.* distilled'),
    ({'arms.both.set': {'rounds': 3}}, 'both has no runs.* leave set out'),
    ({'arms.both.tune': {'folds': 3}}, 'both has no runs.* leave tune out'),
  ],
)
def test_arms_that_make_no_sense_are_refused(changes, said):
  c = small()
  c.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=said) as error:
    arms.check(c)
  assert '\n' not in str(error.value)


def test_rounds_share_the_updates():
  c = small()
  c.rounds = 5
  tuning.apply(c, c.tune, steps=20, learning_rate=0.5)
  assert (c.train.steps, c.optim.learning_rate) == (4, 0.5)


# What follows a colon is an argument of the config.
@pytest.mark.parametrize('config', ['folders.py', 'folders.py:one,two'])
def test_one_run_is_no_sweep(tmp_path, config):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'sjft_jax.sweep'),
      f'--config=configs/{config}',
      f'--workdir={tmp_path}',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert 'needs a config with arms' in done.stderr


def test_a_second_start_is_refused_while_the_first_one_works(tmp_path):
  with workdirs.held(tmp_path), pytest.raises(UserError, match='is in use'):
    experiment.run(small(), tmp_path, one_device())
  assert not list(tmp_path.iterdir())


def test_a_comparison_has_seeds_of_its_own(tmp_path):
  c = small()
  c.seed = 3
  with pytest.raises(UserError, match='leave seed=3 out') as error:
    experiment.run(c, tmp_path / 'run', one_device())
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_files_that_an_arm_lacks_are_missed_before_the_first_runs(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(rounds, 'run', answer_at_random)
  c = small()
  c.tune.folds = 0
  lacking = dict(describe=dict(bank='conv', weights='/nowhere'))
  c.arms.picked = ConfigDict(dict(title='Lacking', set=lacking))
  with pytest.raises(UserError, match='/nowhere'):
    experiment.run(c, tmp_path, one_device())
  assert not (tmp_path / 'runs').exists()
