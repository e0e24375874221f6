"""The command end to end at small size: results, resuming, refusals."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from typing import ClassVar

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import folders
from sjft_jax import (
  experiment,
  export,
  learn,
  mesh,
  paths,
  predict,
  preflight,
  round_files,
  rounds,
  selected,
  verify,
)
from sjft_jax.command import guarded
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from sjft_jax.models import weight_files
from sjft_jax.report import pages
from tests import digits, store
from tests.report.pages_test import Page

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {
  'target.kind': 'folder',
  'describe.resize': 16,
  'describe.crop': 16,
  'describe.bins': 8,
  'budget.initial': 3,
  'budget.maximum': 12,
  # Otherwise timed, and the certificate says what was chosen.
  'search.operands': 'float32',
  'model.width': 0.125,
  'pretrain.steps': 4,
  'pretrain.batch': 8,
  'pretrain.warmup': 1,
  'train.resize': 18,
  'train.crop': 16,
  'train.steps': 4,
  'train.target_batch': 4,
  'train.source_batch': 4,
  'train.checkpoint_every': 2,
  'rounds': 2,
  'distill.steps': 3,
  'evaluate.batch': 16,
}


def command(module, *args, real=False, root=None):
  """A command, by a small network unless `real`; gs:// and s3:// in `root`."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  started = ['-m', f'sjft_jax.{module}']
  if not real:
    work = 'main.run(sys.argv)'
    if module != 'main':
      work = f'command.guarded({module}._work, sys.argv)'
    code = (
      f'import sys; from sjft_jax import command, {module}; '
      'from tests import small, store; small.network(); '
      f'{"store.register(); " if root else ""}sys.exit({work})'
    )
    started = ['-c', code]
  if root:
    environment[store.ROOT] = str(root)
  return dict(
    args=[sys.executable, *started, *map(str, args)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def settings(data, **changes):
  places = {
    'target.train': str(data / 'train'),
    'target.test': str(data / 'test'),
    'source.main.dir': str(data / 'source'),
  }
  return SETTINGS | places | changes


def flags(data, workdir, **changes):
  given = settings(data, **changes).items()
  return [
    f'--config={ROOT}/configs/folders.py',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in given),
  ]


def run(data, workdir, real=False, **changes):
  given = flags(data, workdir, **changes)
  return subprocess.run(**command('main', *given, real=real), check=False)


def start(data, workdir, devices=1, **changes):
  """The same in this process."""
  c = folders.get_config()
  with c.unlocked():
    c.update_from_flattened_dict(settings(data, **changes))
  used = mesh.make(jax.devices()[:devices])
  experiment.run(c, paths.path(str(workdir)), used)


def refusal(data, workdir, devices=1, **changes):
  """What is said when a run refuses its settings."""
  with pytest.raises(UserError) as error:
    start(data, workdir, devices, **changes)
  return str(error.value)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """8 train, 12 test, 40 source images."""
  root = tmp_path_factory.mktemp('data')
  return digits.write(root, train=(0, 20), test=(20, 50), source=(50, 110))


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  done = run(data, workdir, max_bad_fraction=0.05)
  assert done.returncode == 0, done.stderr
  return workdir


def results(workdir):
  value = json.loads((workdir / 'results.json').read_text())
  value.pop('seconds')
  return value


def test_a_run_leaves_what_the_documents_say_and_nothing_else(finished):
  page = (ROOT / 'docs/files.md').read_text()
  table = page.partition('| path |')[2].partition('\n\n')[0].splitlines()[2:]
  named = set(re.findall('`([^`]+)`', ' '.join(table)))
  left = [p.relative_to(finished) for p in finished.rglob('*') if p.is_file()]
  for path in left:
    parents = {f'{parent.name}/' for parent in path.parents}
    assert path.as_posix() in named or path.name in named or parents & named, (
      path
    )
  # Of other settings.
  absent = {'selection/features.json', 'selection/source_classes.json'}
  for row in table:
    first, *others = re.findall('`([^`]+)`', row.split('|')[1])
    folder = first.rpartition('/')[0]
    for name in {first, *(f'{folder}/{o}'.lstrip('/') for o in others)}:
      there = (finished / name.replace('<m>', '0')).exists()
      assert there == (name not in absent), name
  rows = pq.read_table(finished / 'selection' / 'neighbours.parquet')
  distance = rows['distance'].to_numpy().reshape(-1, 12)
  assert (np.diff(distance, axis=1) >= 0).all()
  assert not any('broken' in s for s in rows['source_id'].to_pylist())
  bad = (finished / 'bad_images.csv').read_text()
  assert 'main:digit 1/broken.png' in bad
  certificate = json.loads(
    (finished / 'selection' / 'certificate.json').read_text()
  )
  assert certificate['source_images_seen'] == certificate['source_images']
  stages = {path.name for path in (finished / 'tensorboard').iterdir()}
  assert stages == {'pretrain', 'round_0', 'round_1', 'distilled'}
  lines = (finished / 'metrics.jsonl').read_text().splitlines()
  last = {row['round']: row['step'] for row in map(json.loads, lines)}
  assert list(last.items()) == [(-1, 4), (0, 4), (1, 4), (2, 3)]


def test_what_each_round_borrowed_can_be_exported(finished):
  for r in results(finished)['rounds']:
    chosen = selected.load(finished, of_round=r['round'])
    labels = chosen.pool.labels[chosen.index]
    assert r['images_selected'] == {'main': len(chosen.index)}
    assert r['classes_selected'] == {'main': len(set(labels.tolist()))}
    many = np.bincount(chosen.target_n, minlength=len(chosen.target))
    assert many.mean() == r['mean_k']


def test_the_page_shows_what_the_run_found(finished):
  found, page = results(finished), Page(finished / 'report' / 'index.html')
  for r in found['rounds']:
    borrowed = sum(r['images_selected'].values())
    mean, overall, *_, k, images = page.row(f'{r["round"]}')
    assert mean == f'{100 * r["mean_class_accuracy"]:.1f}'
    assert overall == f'{100 * r["accuracy"]:.1f}'
    assert float(k) == pytest.approx(r['mean_k'], rel=5e-3)
    assert int(images) == borrowed
  assert f'{mean} %' in page.texts
  assert page.row('main')[0] == f'{borrowed}'
  # By class, as the page counts them anew from the neighbours and every K.
  lent = [re.fullmatch(r'(\d+) of \d+', row[-1]) for row in page.cells]
  lent = [int(match[1]) for match in lent if match]
  assert (sum(lent), len(lent)) == (borrowed, r['classes_selected']['main'])
  names, count_cc = round_files.confusion(finished / 'rounds' / '1')
  accuracy = count_cc.trace() / count_cc.sum()
  assert accuracy == pytest.approx(r['accuracy'])
  np.fill_diagonal(count_cc, 0)
  i, j = np.unravel_index(count_cc.argmax(), count_cc.shape)
  first = [names[i], names[j]]
  assert [row for row in page.cells if row[:2] == first] or not count_cc.any()
  reasons = json.loads((finished / 'selection' / 'reasons.json').read_text())
  for pair in reasons['pairs']:
    assert f'{pair["distance"]:#.3g}' in page.text
  assert page.text.count('Agree most') == len(reasons['pairs']) == 6


def test_a_second_start_says_so_and_changes_nothing(data, finished, capsys):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob('*')}
  start(data, finished, max_bad_fraction=0.05)
  assert 'nothing has changed' in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in finished.rglob('*')} == before


def test_another_setting_is_refused(data, finished):
  said = refusal(data, finished, max_bad_fraction=0.05, rounds=3)
  assert 'rounds was 2, now 3' in said


def killed(arguments, reached):
  """Starts the command and kills it once a file is there."""
  with subprocess.Popen(**arguments) as process:
    while not reached.exists() and process.poll() is None:
      time.sleep(0.002)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)


def test_killed_and_resumed_equals_uninterrupted(data, finished, tmp_path):
  workdir = tmp_path / 'killed'
  arguments = flags(data, workdir, max_bad_fraction=0.05)
  for reached in (
    'selection/edges.npz',
    'rounds/0/checkpoint/2',
    'distilled/checkpoint',
  ):
    killed(command('main', *arguments), workdir / reached)
  done = run(data, workdir, max_bad_fraction=0.05)
  assert done.returncode == 0, done.stderr
  assert results(workdir) == results(finished)
  for name in ('selection/neighbours.parquet', 'rounds/1/budget.csv'):
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def in_store(root, module, *args):
  return command(module, *args, root=root)


def files_of(directory):
  """{name: bytes} but for what differs between any two runs."""
  found = {}
  for path in directory.rglob('*'):
    name = path.relative_to(directory).as_posix()
    own = 'checkpoint' in name or name.startswith('tensorboard/')
    if path.is_file() and not own:
      found[name] = path.read_bytes()
  # Of safetensors the head has no order; the others hold paths and seconds.
  for name in ('pretrain/trunk.safetensors', 'config.json', 'seconds.json'):
    found[name] = found[name] and b''
  found['report/index.html'] = found['results.json'] = b''
  return found


def test_in_a_store_killed_and_resumed_equals_a_run_on_disk(
  data, finished, tmp_path
):
  """Images in one bucket, the run in another; no byte comes elsewhere."""
  root, here = tmp_path / 'store', tmp_path / 'here'
  root.mkdir()
  store.fill(root, 'images/set', data)
  arguments = [
    argument.replace(str(data), 's3://images/set')
    for argument in flags(data, 'gs://runs/mine', max_bad_fraction=0.05)
  ]
  reached = urllib.parse.quote('runs/mine/rounds/0/checkpoint/2.tar', safe='')
  killed(in_store(root, 'main', *arguments), root / reached)
  done = subprocess.run(**in_store(root, 'main', *arguments), check=False)
  assert done.returncode == 0, done.stderr
  assert 'gs://runs/mine/report/index.html' in done.stdout
  store.unpack(root, 'gs://runs/mine', here)
  assert files_of(here) == files_of(finished)
  assert results(here) == results(finished)
  ours, theirs = (
    weight_files.read(run / 'pretrain/trunk.safetensors').tensors
    for run in (here, finished)
  )
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name])
  kept = sorted(path.name for path in here.rglob('*.tar'))
  assert kept == ['3.tar', '4.tar', '4.tar']
  # The other commands take the run, and images, where they are.
  asked = subprocess.run(
    **in_store(root, 'predict', '--workdir=gs://runs/mine', 's3://images/set'),
    check=False,
  )
  assert '1 of 80 images could not be read' in asked.stderr, asked.stderr
  assert 's3://images/set/test/digit 0/' in asked.stdout
  assert not (ROOT / 'gs:').exists()
  assert not (ROOT / 's3:').exists()


def test_selection_alone_stops_after_the_neighbours(data, tmp_path):
  # Without test images, which only an evaluation needs.
  changes = {'max_bad_fraction': 0.05, 'rounds': 0, 'target.test': ''}
  done = run(data, tmp_path / 'run', real=True, **changes)
  assert done.returncode == 0, done.stderr
  neighbours = tmp_path / 'run' / 'selection' / 'neighbours.parquet'
  assert neighbours.exists()
  assert f'The neighbours: {neighbours}' in done.stdout
  assert not (tmp_path / 'run' / 'rounds').exists()
  assert not (tmp_path / 'run' / 'pretrain').exists()
  asked = subprocess.run(
    **command('predict', '--workdir', tmp_path / 'run', data), check=False
  )
  assert asked.returncode == 2
  assert 'rounds=0' in asked.stderr.splitlines()[-1]


def test_predictions_name_every_image(data, finished, tmp_path):
  image = next((data / 'test').rglob('*.png'))
  shutil.copy(image, tmp_path / 'a.png')
  # Behind a link, and of a name that is no text.
  (tmp_path.parent / 'linked').mkdir()
  shutil.copy(image, tmp_path.parent / 'linked' / os.fsdecode(b'c\xe9.png'))
  (tmp_path / 'to').symlink_to(tmp_path.parent / 'linked')
  (tmp_path / 'b.jpg').write_bytes(b'')
  (tmp_path / '.hidden.png').write_bytes(b'')
  done = subprocess.run(
    **command('predict', '--workdir', finished, '--json', '--fuse', tmp_path),
    check=False,
  )
  line, other = done.stdout.splitlines()
  assert json.loads(other)['path'].endswith('to/c\\xe9.png')
  value = json.loads(line)
  assert value['path'].endswith('a.png')
  assert value['class'].startswith('digit ')
  assert 0.25 <= value['probability'] <= 1
  assert done.returncode == 2
  assert '1 of 3 images could not be read' in done.stderr


@pytest.mark.parametrize(
  ('module', 'arguments'),
  [(predict, ['.']), (export, ['--to=csv', 'out']), (verify, [])],
)
def test_a_config_of_another_kind_is_one_line_and_exit_code_2(
  data, finished, tmp_path, monkeypatch, capsys, module, arguments
):
  shutil.copytree(finished, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text('{"compilerOptions": {}}')
  monkeypatch.chdir(data / 'test')
  given = ['-', f'--workdir={tmp_path / "run"}', *arguments]
  assert guarded(module._work, given) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'run/config.json is not the config.json of a run' in line


def test_a_refused_start_can_be_mended_in_its_workdir(data, tmp_path):
  workdir = tmp_path / 'run'
  refusal(data, workdir, **{'budget.maximum': 500})
  too_many_bad = refusal(data, workdir, rounds=0)
  assert 'raise --config.max_bad_fraction' in too_many_bad
  searched = (workdir / 'selection' / 'neighbours.parquet').stat().st_mtime_ns
  start(data, workdir, rounds=0, max_bad_fraction=0.05)
  path = workdir / 'selection' / 'neighbours.parquet'
  assert path.stat().st_mtime_ns == searched


def test_weights_that_do_not_fit_are_refused_before_the_search(data, tmp_path):
  said = refusal(data, tmp_path / 'run', **{'model.weights': '/nowhere'})
  assert 'No weights can be read from /nowhere' in said
  assert not (tmp_path / 'run' / 'selection').exists()


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'target.train': '/nowhere'}, 'does not exist'),
    ({'budget.maximum': 500}, 'Lower the budget'),
    ({'train.target_batch': 64, 'train.source_batch': 64}, 'target_batch'),
    ({'describe.bank': 'wavelets'}, 'gabor'),
    ({'selection': 'best'}, 'neighbours'),
    ({'model.trunk': 'vgg'}, 'resnet'),
  ],
)
def test_settings_that_make_no_sense_are_refused(data, tmp_path, changes, said):
  assert said in refusal(data, tmp_path / 'run', **changes)


@pytest.mark.parametrize(
  ('name', 'batch', 'pretrained'),
  [('train.target_batch', 4, 8), ('pretrain.batch', 8, 12)],
)
def test_every_batch_has_to_be_split_over_the_devices(
  data, tmp_path, name, batch, pretrained
):
  changes = {
    'train.target_batch': batch,
    'train.source_batch': batch,
    'pretrain.batch': pretrained,
  }
  said = refusal(data, tmp_path / 'run', devices=8, **changes)
  assert said.startswith(f'{name} must be a multiple of the number of devices')


def test_bad_input_is_one_line_and_exit_code_2(data, tmp_path):
  for changes, said in (
    ({'rounds': 'many'}, 'rounds'),
    ({'target.train': '/nowhere'}, 'does not exist'),
  ):
    done = run(data, tmp_path / 'run', real=True, **changes)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


def test_a_loss_that_is_not_finite_stops_with_one_line(data, tmp_path):
  changes = {
    'max_bad_fraction': 0.05,
    'optim.learning_rate': 1e30,
    'pretrain.steps': 0,
  }
  done = run(data, tmp_path / 'run', real=True, **changes)
  assert done.returncode == 2, done.stderr
  assert 'finite' in done.stderr.splitlines()[-1]


def test_the_releases_options_and_an_early_end(data, tmp_path):
  """K begins at its cap, so that nothing changes after the first round."""
  workdir = tmp_path / 'run'
  done = run(
    data,
    workdir,
    **{
      'max_bad_fraction': 0.05,
      'pretrain.steps': 0,
      'budget.initial': 12,
      'budget.least_per_class': 5,
      'end_when_settled': True,
      'distill.steps': 0,
      'weight_fusion': True,
      'train.by_hardness': True,
      'train.most_per_label': 2,
      'hardness.views': 'ten',
      'evaluate.views': 'dense',
      'evaluate.scales': '(1.0, 1.5)',
      'model.averages': 'target',
    },
  )
  assert done.returncode == 0, done.stderr
  found = results(workdir)
  assert len(found['rounds']) == 1
  assert found['rounds'][0]['changed_k'] == 0
  assert 'After round 0 no K changed' in found['settled']
  # Of one round, both fusions are that round.
  for fusion in ('fused', 'weight_fused'):
    assert found[fusion]['accuracy'] == found['rounds'][0]['accuracy']
  kept = json.loads((workdir / 'selection/source_classes.json').read_text())
  assert len(kept) == found['rounds'][0]['classes_selected']['main'] < 10
  confusion = (workdir / 'rounds/0/confusion.csv').read_text().splitlines()
  counts = np.array([line.split(',')[1:] for line in confusion[1:]], int)
  right = counts.trace() / counts.sum()
  assert right == pytest.approx(found['rounds'][0]['accuracy'])
  image = next((data / 'test').rglob('*.png'))
  asked = subprocess.run(
    **command('predict', '--workdir', workdir, image), check=False
  )
  assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize(
  'changes', [{'seeds': 2}, {'order': ('a',)}, {'tune.folds': 2}]
)
def test_what_is_of_a_comparison_is_refused_without_arms(
  data, tmp_path, changes
):
  said = refusal(data, tmp_path / 'run', **changes)
  assert 'this config has no arms' in said
  assert '\n' not in said
  assert not (tmp_path / 'run').exists()


def test_a_selection_alone_has_no_batches(data, tmp_path):
  c = folders.get_config()
  c.update_from_flattened_dict(settings(data, rounds=0))
  c.train.target_batch = c.train.source_batch = 5
  c.train.most_per_label = 1
  train, test = datasets.open_target(c.target, c.seed)
  preflight.check(c, train, test, mesh.make(), tmp_path)


def test_one_class_alone_is_refused(data, tmp_path, monkeypatch):
  monkeypatch.setattr(learn, 'check', lambda *arguments: None)
  for part in ('train', 'test'):
    (tmp_path / part).mkdir()
    (tmp_path / part / 'cat').symlink_to(data / part / 'digit 0')
  changes = {
    'target.train': str(tmp_path / 'train'),
    'target.test': str(tmp_path / 'test'),
    'train.target_batch': 1,
    'train.source_batch': 1,
  }
  said = refusal(data, tmp_path / 'run', **changes)
  assert 'two classes or more; there is cat alone' in said
  assert not (tmp_path / 'run' / 'guard').exists()


@pytest.mark.parametrize(
  'changes',
  [
    {'describe.bank': 'conv', 'describe.weights': '/nowhere'},
    {'describe.edges': '/nowhere'},
  ],
)
def test_descriptors_that_are_missing_are_refused_before_the_guard(
  data, tmp_path, changes
):
  said = refusal(data, tmp_path / 'run', **changes)
  assert '/nowhere' in said
  assert not (tmp_path / 'run' / 'guard').exists()


class Answering(learn.Learner):
  """Notes what it is asked, and does not compute anything."""

  asked: ClassVar = []

  def start(self, pool, directory, donors=()):
    """Needs no weights."""

  def fine_tune(self, *arguments):
    """Learns nothing."""

  def posteriors(self, variables, dataset, views, label):
    self.asked.append(label)
    answers = np.random.default_rng(len(self.asked))
    return answers.dirichlet(np.ones(4), len(dataset)).astype(np.float32)


def test_a_finished_round_is_not_asked_again(data, tmp_path, monkeypatch):
  monkeypatch.setattr(learn, 'Learner', Answering)
  monkeypatch.setattr(learn, 'check', lambda *arguments: None)
  monkeypatch.setattr(Answering, 'asked', [])
  monkeypatch.setattr(pages, 'write_run', lambda *arguments: None)
  c = folders.get_config()
  c.update_from_flattened_dict(settings(data, selection='none'))
  c.pretrain.steps = c.distill.steps = 0
  devices = mesh.make(jax.devices()[:1])
  rounds.run(c, tmp_path, devices)
  assert Answering.asked == ['posteriors', 'test'] * 2
  whole = results(tmp_path)
  (tmp_path / 'results.json').unlink()
  (tmp_path / 'rounds' / '1' / 'budget.csv').unlink()
  Answering.asked[2:] = []
  rounds.run(c, tmp_path, devices)
  assert Answering.asked == ['posteriors', 'test'] * 2
  assert results(tmp_path) == whole
