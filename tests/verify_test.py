"""A search on real files: its certificate, its check, and its reasons."""

import csv
import dataclasses
import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from configs import folders
from sjft_jax import (
  explain,
  files,
  intake,
  machine,
  mesh,
  retrieval,
  verify,
  workdirs,
)
from sjft_jax.errors import UserError

NAMES = ('certificate.json', 'neighbours.parquet', 'edges.npz')


def settings(data, **changes):
  c = folders.get_config()
  c.target.train = c.target.test = str(data / 'target')
  c.source.main.dir = str(data / 'source')
  c.describe.resize = c.describe.crop = 16
  c.describe.bins = 8
  c.budget.initial, c.budget.maximum = 3, 12
  c.update_from_flattened_dict(changes)
  return c


def search(c, workdir):
  workdirs.claim(workdir, c.to_dict())
  target, _, pool = intake.load(c, workdir)
  retrieval.find(c, target, pool, workdir / 'selection', mesh=mesh.make())
  return workdir


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  root, digits = tmp_path_factory.mktemp('data'), load_digits()
  for part, numbers in (('target', range(12)), ('source', range(12, 160))):
    for i in numbers:
      path = root / part / str(digits.target[i]) / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(path), (digits.images[i] * 15).astype(np.uint8))
  (root / 'source' / '1' / 'bad.png').write_bytes(b'no image')
  return root


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  cache = {'search.cache': str(workdir.parent / 'cache')}
  return search(settings(data, **cache), workdir)


def test_the_certificate_counts_what_was_seen(finished):
  value = files.read_json(finished / 'selection' / 'certificate.json')
  assert value['sources'] == {
    'main': {'images': 149, 'seen_once': 149, 'unreadable': 1}
  }
  assert value['epsilon'] == 2.2204e-16
  assert value['pairs'] == 12 * 148
  assert 12 * 13 <= value['pairs_evaluated_in_float64'] <= value['pairs']
  assert value['smallest_margin_nats'] >= 0
  assert value['smallest_margin_target'].startswith('target:')
  assert value['described_on'] == machine.described()
  assert 0 < value['screen_error_bound_nats'] < 1
  assert not (finished / 'selection' / 'shards').exists()


def test_a_sound_search_is_found_sound(finished):
  checked = verify.verify(finished, targets=5, sources=40, seed=1)
  assert checked['target images'] == 5
  assert checked['distances that agree'] > 5
  assert checked['images rightly left out'] > 40


def test_a_draw_that_cannot_be_is_refused(finished):
  for draw in ('--seed=-1', '--targets=0', '--sources=-1'):
    with pytest.raises(UserError, match='at least'):
      verify._work(['verify', f'--workdir={finished}', draw])


@pytest.mark.parametrize('name', NAMES)
def test_one_altered_byte_is_found(finished, tmp_path, name):
  workdir = tmp_path / 'copy'
  rng = np.random.default_rng(2)
  for place in (0.0, *rng.random(5), 1.0):
    shutil.copytree(finished, workdir)
    path = workdir / 'selection' / name
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match='is not as the search wrote it'):
      verify.verify(workdir, targets=1, sources=1, seed=0)
    shutil.rmtree(workdir)


def reopened(monkeypatch, altered):
  """Has `altered` see to every search that is reopened."""
  reopen = retrieval.reopen
  monkeypatch.setattr(retrieval, 'reopen', lambda *args: altered(reopen(*args)))


@pytest.mark.parametrize('change', [1e-6, -1e-6])
def test_a_wrong_distance_is_found(finished, monkeypatch, change):
  def altered(run):
    run.table.distance_qk[:, 0] += change
    return run

  reopened(monkeypatch, altered)
  with pytest.raises(UserError, match='nats apart, but the search has') as here:
    verify.verify(finished, targets=1, sources=1, seed=0)
  assert 'which may be why' not in str(here.value)
  other = machine.described() | {'processor': 'Abacus 9'}
  monkeypatch.setattr(machine, 'described', lambda: other)
  with pytest.raises(
    UserError, match=r'Abacus 9, .* which may be why'
  ) as there:
    verify.verify(finished, targets=1, sources=1, seed=0)
  assert '\n' not in str(there.value)


def test_a_machine_that_finds_the_same_has_nothing_said(finished, monkeypatch):
  monkeypatch.setattr(machine, 'described', lambda: {'jaxlib': 'another'})
  verify.verify(finished, targets=2, sources=9, seed=0)


def test_a_neighbour_that_is_missing_is_found(finished, monkeypatch):
  def altered(run):
    run.table.index_qk[:, 0] = -1
    run.table.index_qk[:, :-1] = run.table.index_qk[:, 1:].copy()
    run.table.distance_qk[:, :-1] = run.table.distance_qk[:, 1:].copy()
    return run

  reopened(monkeypatch, altered)
  with pytest.raises(UserError, match='nats apart, but the search has'):
    verify.verify(finished, targets=12, sources=149, seed=0)


def test_rows_that_lack_their_last_place_are_found(finished, monkeypatch):
  def altered(run):
    run.table.index_qk = run.table.index_qk[:, :-1]
    run.table.distance_qk = run.table.distance_qk[:, :-1]
    return run

  reopened(monkeypatch, altered)
  with pytest.raises(UserError, match='not listed, the last neighbour at inf'):
    verify.verify(finished, targets=1, sources=149, seed=0)


def test_an_image_that_can_be_read_again_is_passed_over(finished, monkeypatch):
  def altered(run):
    bad = run.source.ids.tolist().index('main:1/bad.png')
    nearest, read = int(run.table.index_qk[0, 0]), run.source.read
    mended = dataclasses.replace(
      run.source, read=lambda i: read(nearest if i == bad else i)
    )
    return dataclasses.replace(run, source=mended)

  reopened(monkeypatch, altered)
  checked = verify.verify(finished, targets=12, sources=149, seed=0)
  assert checked['source images'] == 149
  assert checked['distances that agree'] == 12 * 12


def test_the_directory_of_a_comparison_gets_advice(tmp_path):
  with pytest.raises(UserError, match='one of its runs/<arm>-<seed>'):
    verify.verify(tmp_path, targets=1, sources=1, seed=0)


def test_a_neighbour_that_cannot_be_read_any_more_is_found(
  finished, monkeypatch
):
  def altered(run):
    lost, read = int(run.table.index_qk[0, 0]), run.source.read
    broken = dataclasses.replace(
      run.source, read=lambda i: b'' if i == lost else read(i)
    )
    return dataclasses.replace(run, source=broken)

  reopened(monkeypatch, altered)
  with pytest.raises(UserError, match='was searched and cannot be read'):
    verify.verify(finished, targets=12, sources=1, seed=0)


def test_other_images_are_refused(data, finished, tmp_path):
  moved = tmp_path / 'data'
  shutil.copytree(data, moved)
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  config = json.loads((workdir / 'config.json').read_text())
  config['settings']['source']['main']['dir'] = str(moved / 'source')
  (workdir / 'config.json').write_text(json.dumps(config))
  verify.verify(workdir, targets=1, sources=1, seed=0)
  next((moved / 'source' / '3').glob('*.png')).unlink()
  with pytest.raises(UserError, match='are not those of the search'):
    verify.verify(workdir, targets=1, sources=1, seed=0)


def test_a_second_target_set_describes_no_source_image(
  data, finished, tmp_path, monkeypatch
):
  other = tmp_path / 'target'
  shutil.copytree(data / 'source' / '2', other / '2')
  changes = {
    'describe.edges': str(finished / 'selection' / 'edges.npz'),
    'target.train': str(other),
    'target.test': str(other),
  }
  plain = search(settings(data, **changes), tmp_path / 'plain')
  cache = {'search.cache': str(finished.parent / 'cache')}
  opened = []

  def watch(file, *args, **kwargs):
    opened.append(str(file))
    return open(file, *args, **kwargs)

  monkeypatch.setattr('sjft_jax.paths.open', watch, raising=False)
  cached = search(settings(data, **changes, **cache), tmp_path / 'cached')
  assert opened
  # But those by which the whole, and what is left of it, are known.
  read = {name for name in opened if '/source/' in name}
  assert len(read) <= 16 < len(list((data / 'source').rglob('*.png'))) / 2
  for name in ('neighbours.parquet', 'edges.npz'):
    assert (cached / 'selection' / name).read_bytes() == (
      plain / 'selection' / name
    ).read_bytes()


def test_reasons_sum_to_the_distance(finished, tmp_path, capsys):
  rows = pq.read_table(finished / 'selection' / 'neighbours.parquet')
  row = rows.to_pylist()[5]
  out = tmp_path / 'why'
  explain.explain(finished, row['target_id'], row['source_id'], out, 4)
  with open(f'{out}.csv', encoding='utf-8', newline='') as file:
    bins = list(csv.DictReader(file))
  assert len(bins) == 48 * 8
  nats = [float(b['nats']) for b in bins]
  assert min(nats) >= 0
  assert sum(nats) == pytest.approx(row['distance'], rel=1e-12)
  for side in ('target_pixels', 'source_pixels'):
    assert sum(int(b[side]) for b in bins) == 48 * 16 * 16
  assert cv2.imread(f'{out}.png').shape[2] == 3
  printed = capsys.readouterr().out
  assert f'rank {row["rank"]}, {row["distance"]:.9f} nats' in printed
  assert 'gabor' in printed
  assert 'the other 44' in printed


def test_an_unknown_image_is_refused(finished, tmp_path):
  with pytest.raises(UserError, match="'main:no' is no source image"):
    explain.explain(
      finished, 'target:train/0/0.png', 'main:no', tmp_path / 'why', 4
    )
