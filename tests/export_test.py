"""What an export holds, read back without this project."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import folders
from sjft_jax import (
  certificate,
  export,
  export_formats,
  features,
  files,
  guard,
  intake,
  mesh,
  round_files,
  selected,
  selection,
  tables,
  workdirs,
)
from sjft_jax.data import datasets, recorded
from sjft_jax.errors import UserError
from tests import digits, small

K = 4


def picture(value, kind):
  buffer = io.BytesIO()
  Image.fromarray(np.full((5, 6, 3), value, np.uint8)).save(buffer, kind)
  return buffer.getvalue()


NAMES = ('a/x.jpg', 'a/X.JPG', 'a b/two?.png', 'a b/sub/1.png', 'ü/é.gif')


@pytest.fixture
def workdir(tmp_path):
  """A run that has searched: 3 target images, 4 of 5 source images selected."""
  kinds = {'.jpg': 'JPEG', '.png': 'PNG', '.gif': 'GIF'}
  for part, names in (
    ('train', ('p/1.png', 'p/2.png', 'q/3.png')),
    ('test', ('q/4.png',)),
    ('source', NAMES),
  ):
    for value, name in enumerate(names):
      path = tmp_path / part / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(picture(value, kinds[path.suffix.lower()]))
  c = folders.get_config()
  c.target.train, c.target.test = (
    str(tmp_path / 'train'),
    str(tmp_path / 'test'),
  )
  c.source.main.dir = str(tmp_path / 'source')
  train, test = datasets.open_target(c.target, c.seed)
  pool = datasets.open_pool(c.source)
  run = tmp_path / 'run'
  files.write_json(run / 'config.json', {'settings': c.to_dict()})
  files.write_json(
    run / 'data.json',
    {
      'target': {'digest': train.digest + test.digest},
      'source': {'digest': pool.digest},
    },
  )
  table = tables.Table.empty(3, K)
  # The third source image is nobody's neighbour; a row ends early.
  table.index_qk[:] = [[0, 1, 3, 4], [4, 3, 1, 0], [1, 0, -1, -1]]
  table.distance_qk[:] = np.cumsum(np.full((3, K), 1 / 3), axis=1)
  tables.write(
    run / 'selection' / 'neighbours.parquet', table, train.ids, pool.ids
  )
  certify(run / 'selection')
  return run, train, pool, table


def certify(directory):
  """Leaves the certificate of a search that found what lies there."""
  (directory / 'edges.npz').write_bytes(b'')
  value = {
    f'{name.partition(".")[0]}_sha256': files.digest(directory / name)
    for name in certificate.FILES
  }
  text = json.dumps(value, sort_keys=True).encode()
  own = {'certificate_sha256': hashlib.sha256(text).hexdigest()}
  files.write_json(directory / certificate.NAME, value | own)


def expected_pairs(train, pool, table):
  """{(target id, rank): (source id, distance, classes, labels)}."""
  return {
    (train.ids[t], rank): (
      pool.ids[s],
      table.distance_qk[t, rank],
      train.classes[train.labels[t]],
      pool.classes[pool.labels[s]],
      int(train.labels[t]),
      int(pool.labels[s]),
    )
    for t, row in enumerate(table.index_qk)
    for rank, s in enumerate(row)
    if s >= 0
  }


def pairs_of(rows):
  columns = ('source_id', 'distance', 'target_class', 'source_class',
             'target_label', 'source_label')  # fmt: skip
  return {
    (row['target_id'], row['rank']): tuple(row[name] for name in columns)
    for row in rows
  }


def read_csv(path):
  types = {'rank': int, 'distance': float}
  types |= {'target_label': int, 'source_label': int}
  with open(path, newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  return [
    {k: types.get(k, str)(v) if v else None for k, v in row.items()}
    for row in rows
  ]


@pytest.mark.parametrize('pairs', [3, 2**20])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_tables_hold_every_pair_to_the_last_digit(
  workdir, tmp_path, monkeypatch, kind, pairs
):
  run, *truth = workdir
  monkeypatch.setattr(selected, '_PAIRS', pairs)
  out = tmp_path / f'out.{kind}'
  export_formats.FORMATS[kind](selected.load(run), out)
  rows = read_csv(out) if kind == 'csv' else pq.read_table(out).to_pylist()
  assert pairs_of(rows) == expected_pairs(*truth)


def test_a_folder_holds_the_same_files_by_class(workdir, tmp_path):
  run, train, pool, table = workdir
  out = tmp_path / 'out'
  export_formats.to_folder(selected.load(run), out)
  with open(out / 'images.csv', newline='', encoding='utf-8') as file:
    images = list(csv.DictReader(file))
  assert {row['source_id'] for row in images} == set(pool.ids[[0, 1, 3, 4]])
  place = {name: i for i, name in enumerate(pool.ids)}
  for row in images:
    i = place[row['source_id']]
    assert (out / row['path']).read_bytes() == pool.read(i)
    assert int(row['label']) == pool.labels[i]
    assert row['class'] == pool.classes[pool.labels[i]]
  # One directory for each class, and no two names that differ in case alone.
  paths = [row['path'] for row in images]
  assert len({path.lower() for path in paths}) == len(paths)
  folder = {(row['class'], row['path'].split('/')[1]) for row in images}
  assert len(folder) == len({name for name, _ in folder}) == 3
  rows = read_csv(out / 'pairs.csv')
  assert pairs_of(rows) == expected_pairs(train, pool, table)


def read_tar(out):
  """{key: {field: bytes}} of all shards."""
  samples = {}
  for path in sorted(out.iterdir()):
    with tarfile.open(path) as tar:
      for member in tar:
        # WebDataset: what stands before the first dot names the sample.
        key, _, field = member.name.partition('.')
        samples.setdefault(key, {})[field] = tar.extractfile(member).read()
  return samples


@pytest.mark.parametrize('shard', [2, 100])
def test_shards_hold_images_labels_and_pairs(
  workdir, tmp_path, monkeypatch, shard
):
  run, train, pool, table = workdir
  monkeypatch.setattr(export_formats, 'SHARD', shard)
  export_formats.to_tar(selected.load(run), tmp_path / 'out')
  assert len(list((tmp_path / 'out').iterdir())) == -(-4 // shard)
  samples = read_tar(tmp_path / 'out')
  place = {name: i for i, name in enumerate(pool.ids)}
  rows = []
  for sample in samples.values():
    text = json.loads(sample.pop('json'))
    i = place[text['source_id']]
    assert int(sample.pop('cls')) == text['source_label'] == pool.labels[i]
    assert text['source_class'] == pool.classes[pool.labels[i]]
    ((suffix, data),) = sample.items()
    assert suffix in ('jpg', 'png', 'gif')
    assert data == pool.read(i)
    rows += [text | pair for pair in text['pairs']]
  assert len(samples) == 4
  assert pairs_of(rows) == expected_pairs(train, pool, table)


def read_tfds(out):
  """(Records with encoded images, features)."""
  builder = tfds.builder_from_directory(str(out))
  decoders = {'image': tfds.decode.SkipDecoding()}
  return builder.as_data_source(
    'train', decoders=decoders
  ), builder.info.features


@pytest.mark.parametrize('shard', [3, 100])
def test_a_tfds_set_holds_images_labels_and_pairs(
  workdir, tmp_path, monkeypatch, shard
):
  run, train, pool, table = workdir
  monkeypatch.setattr(recorded, 'PER_SHARD', shard)
  export_formats.to_tfds(selected.load(run), tmp_path / 'out')
  records, kinds = read_tfds(tmp_path / 'out')
  assert tuple(kinds['label'].names) == pool.classes
  target_classes = kinds['pairs']['target_label'].names
  assert tuple(target_classes) == train.classes
  place = {name: i for i, name in enumerate(pool.ids)}
  rows = []
  for record in records:
    i = place[record['file_name'].decode()]
    assert record['label'] == pool.labels[i]
    assert record['image'] == pool.read(i)
    pairs = record['pairs']
    rows += [
      {
        'source_id': pool.ids[i],
        'source_label': record['label'],
        'source_class': pool.classes[record['label']],
        'target_id': name.decode(),
        'target_label': label,
        'target_class': target_classes[label],
        'rank': rank,
        'distance': distance,
      }
      for name, label, rank, distance in zip(
        pairs['target_id'],
        pairs['target_label'],
        pairs['rank'],
        pairs['distance'],
        strict=True,
      )
    ]
  assert len(records) == 4
  assert pairs_of(rows) == expected_pairs(train, pool, table)
  assert 'tensorflow' not in sys.modules


def written(kind, out):
  """{source id: {target id, or None: (rank, distance)}} of what was exported.

  The source images are those that the format holds; -1 and NaN of tfds are
  None.
  """
  rows, found = [], {}
  if kind == 'tar':
    for sample in read_tar(out).values():
      text = json.loads(sample['json'])
      rows += [text | pair for pair in text['pairs']]
      found[text['source_id']] = {}
  elif kind == 'tfds':
    for record in read_tfds(out)[0]:
      name, pairs = record['file_name'].decode(), record['pairs']
      found[name] = {}
      for target, *values in zip(
        pairs['target_id'], pairs['rank'], pairs['distance'], strict=True
      ):
        rank, distance = values if values[0] >= 0 else (None, None)
        assert (rank is None) == np.isnan(values[1])
        pair = {'rank': rank, 'distance': distance}
        rows.append({'source_id': name, 'target_id': target.decode()} | pair)
  elif kind == 'parquet':
    rows = pq.read_table(out).to_pylist()
  else:
    rows = read_csv(out / 'pairs.csv' if kind == 'folder' else out)
  if kind == 'folder':
    with open(out / 'images.csv', newline='', encoding='utf-8') as file:
      found = {row['source_id']: {} for row in csv.DictReader(file)}
  for row in rows:
    of_one = found.setdefault(row['source_id'], {})
    of_one[row['target_id']] = row['rank'], row['distance']
  return found


@pytest.mark.parametrize('kind', export_formats.FORMATS)
def test_no_format_loses_a_pair_without_rank(workdir, tmp_path, kind):
  chosen = selected.load(workdir[0])
  without = np.arange(len(chosen.rank_n)) % 2 > 0
  rank_n = np.where(without, -1, chosen.rank_n).astype(np.int32)
  distance_n = np.where(without, np.nan, chosen.distance_n)
  some = dataclasses.replace(chosen, rank_n=rank_n, distance_n=distance_n)
  export_formats.FORMATS[kind](some, tmp_path / 'some')
  expected = {}
  for t, s, rank, distance in zip(
    chosen.target_n, chosen.source_n, rank_n, distance_n, strict=True
  ):
    value = (None, None) if rank < 0 else (rank, distance)
    of_one = expected.setdefault(chosen.pool.ids[s], {})
    of_one[chosen.target.ids[t]] = value
  assert written(kind, tmp_path / 'some') == expected


@pytest.mark.parametrize('kind', export_formats.FORMATS)
def test_images_of_all_are_there_once_and_of_nobody(workdir, tmp_path, kind):
  chosen = selected.load(workdir[0])
  none = np.full(len(chosen.index), -1)
  shared = dataclasses.replace(
    chosen,
    source_n=chosen.index,
    target_n=none,
    rank_n=none.astype(np.int32),
    distance_n=np.full(len(none), np.nan),
  )
  export_formats.FORMATS[kind](shared, tmp_path / 'shared')
  nobody = {} if kind in ('tar', 'tfds') else {None: (None, None)}
  ids = chosen.pool.ids[chosen.index]
  assert written(kind, tmp_path / 'shared') == dict.fromkeys(ids, nobody)


def test_a_class_name_that_tfds_cannot_keep_is_refused(workdir, tmp_path):
  run, *_ = workdir
  selection = selected.load(run)
  other = dataclasses.replace(selection.target, classes=('p', 'q '))
  selection = dataclasses.replace(selection, target=other)
  with pytest.raises(UserError, match=r"'q '.*another format"):
    export_formats.to_tfds(selection, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_only_the_nearest_on_demand(workdir):
  run, train, pool, table = workdir
  selection = selected.load(run, k=1)
  assert selection.index.tolist() == [0, 1, 4]
  nearest = {
    key: value
    for key, value in expected_pairs(train, pool, table).items()
    if key[1] < 1
  }
  (part,) = selection.pairs()
  assert pairs_of(part.to_pylist()) == nearest


@pytest.mark.parametrize(
  ('name', 'safe'),
  [
    ('main:n01', 'main_n01'),
    ('../../etc', '_.._etc'),
    ('..', '_'),
    ('C:\\x', 'C__x'),
    ('日本', '日本'),
  ],
)
def test_no_name_leads_out_of_the_folder(name, safe):
  assert export_formats._safe(name) == safe
  assert os.path.basename(safe) == safe


def test_changed_images_and_unfinished_runs_are_refused(workdir, tmp_path):
  run, *_ = workdir
  with pytest.raises(UserError, match='not the directory of a run'):
    selected.load(tmp_path / 'nothing')
  (tmp_path / 'source' / 'a' / 'x.jpg').unlink()
  with pytest.raises(UserError, match='source images are not the ones'):
    selected.load(run)


@pytest.mark.parametrize('kind', ['folder', 'tar', 'tfds'])
def test_what_is_no_image_any_more_is_named(workdir, tmp_path, kind):
  run, *_ = workdir
  selection = selected.load(run)
  path = tmp_path / 'source' / NAMES[0]
  # What is compared are names and sizes.
  path.write_bytes(b'?' * path.stat().st_size)
  with pytest.raises(UserError, match=r'main:a/x.jpg .* not an image any'):
    export_formats.FORMATS[kind](selection, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', [certificate.NAME, *certificate.FILES])
def test_an_altered_search_is_refused(workdir, name):
  run, *_ = workdir
  with open(run / 'selection' / name, 'ab') as file:
    file.write(b' ')
  with pytest.raises(UserError, match=f'{name} is not as the search wrote it'):
    selected.load(run)


def test_samples_grow_with_the_pairs_and_not_with_their_square(workdir):
  """What the pairs are of is looked at once, before the first sample."""
  run, *_ = workdir
  expected = [pairs for *_, pairs in selected.samples(selected.load(run))]
  selection = selected.load(run)
  source_n = selection.source_n.copy()
  selection = dataclasses.replace(selection, source_n=source_n)
  samples = selected.samples(selection)
  found = [next(samples)]
  source_n[:] = -1
  found += samples
  assert [i for i, *_ in found] == [0, 1, 3, 4]
  assert [pairs for *_, pairs in found] == expected


def test_the_command_writes_once(workdir, tmp_path):
  run, *_ = workdir
  out = tmp_path / 'out.csv'
  command = [sys.executable, '-m', 'sjft_jax.export', f'--workdir={run}']
  command += ['--to=csv', str(out)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert '10 pairs with 4 source images' in done.stdout
  again = subprocess.run(command, capture_output=True, text=True, check=False)
  assert again.returncode == 2
  assert again.stderr.count('\n') == 1
  assert 'exists already' in again.stderr


def test_a_taken_name_is_asked_for_once_and_gets_the_next_number():
  looks = 0

  class Counted(dict):
    def __contains__(self, key):
      nonlocal looks
      looks += 1
      return super().__contains__(key)

  used = Counted()
  names = [export_formats._free(n, '.png', used) for n in ['a', 'A'] * 500]
  assert names[:4] == ['a.png', 'A~2.png', 'a~3.png', 'A~4.png']
  assert len({name.lower() for name in names}) == 1000
  assert looks <= 2 * 1000
  # What looks like a number of ours may be a file's own name.
  used = {}
  names = [export_formats._free(n, '', used) for n in ('x~2', 'x', 'x', 'x~2')]
  assert names == ['x~2', 'x', 'x~3', 'x~2~2']


def test_no_name_is_longer_than_a_file_system_takes():
  used, name = {}, '漢' * 84
  folders = export_formats._distinct([export_formats._safe(name)] * 2)
  for suffix in ('.webp', '.webp'):
    stem = export_formats._safe(name)
    export_formats._free(stem, suffix, used)
  assert len({*folders, *used}) == 4
  assert all(len(made.encode()) <= 255 for made in (*folders, *used))
  assert all(set(made[:9]) == {'漢'} for made in folders)


RULES = (
  ('neighbours', {}),
  ('neighbours', {'budget.images': 30}),
  ('neighbours', {'budget.least_per_class': 2}),
  ('neighbours', {'budget.depth': 20}),
  ('labelled', {}),
  ('labelled', {'budget.least_per_class': 2}),
  ('classes', {}),
  ('random', {}),
  ('random', {'budget.images': 30}),
  ('all', {}),
)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Digits; each set has a broken one, the source one of the test's."""
  root = tmp_path_factory.mktemp('images')
  digits.write(root, train=(0, 20), test=(20, 50), source=(50, 150))
  folder = root / 'train' / 'digit 2'
  (folder / '0 broken.png').write_bytes(b'no image')
  name = next((root / 'test' / 'digit 0').iterdir())
  copy = root / 'source' / 'digit 0' / '0 copy.png'
  copy.write_bytes(name.read_bytes())
  return root


@pytest.fixture(scope='module')
def searched(images, tmp_path_factory):
  """Function of settings to a run that has found what it selects by."""
  runs = []

  def search(rule, **changes):
    c = folders.get_config()
    c.target.train = str(images / 'train')
    c.target.test = str(images / 'test')
    c.source.main.dir = str(images / 'source')
    c.selection, c.max_bad_fraction, c.rounds = rule, 0.2, 3
    c.describe.resize = c.describe.crop = 8
    c.describe.bins = 4
    c.budget.initial, c.budget.maximum = 3, 12
    c.update_from_flattened_dict(changes)
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    workdirs.claim(workdir, c.to_dict())
    target, test, pool = intake.load(c, workdir)
    pool = guard.withhold(c, target, test, pool, workdir, runs)
    draw, _ = selection.stage(c, target, pool, workdir, mesh.make(), runs)
    runs.append(workdir)
    assert len(guard.remaining(pool, workdir)) == len(pool)
    return workdir, c, target, test, pool, draw

  with pytest.MonkeyPatch.context() as patched:
    small.bank(patched.setattr)
    yield search


def end_round(workdir, m, k_q, target, test):
  """Leaves the files of a round; what was answered does not matter."""
  shape = len(target.classes)
  answers = [np.full((len(x), shape), 1 / shape) for x in (target, test)]
  round_files.write(
    workdir / 'rounds' / str(m), *answers, k_q, k_q + 1, target, test
  )


def drawn(draw, k_q, target, pool, rule):
  """{target id, or None for all: ids of what it draws, in their order}."""
  found = draw(k_q)
  lists = {
    name: pool.ids[found.index[start:stop]].tolist()
    for name, start, stop in zip(
      target.ids.tolist(), found.start, found.stop, strict=True
    )
  }
  if rule in ('neighbours', 'labelled'):
    return lists
  assert all(ids == lists[target.ids[0]] for ids in lists.values())
  return {None: sorted(lists[target.ids[0]])}


def rows_of(chosen):
  return [row for part in chosen.pairs() for row in part.to_pylist()]


def exported(chosen):
  """As `drawn`, of a selection."""
  lists = {}
  for row in rows_of(chosen):
    lists.setdefault(row['target_id'], []).append(row['source_id'])
  if None in lists:
    lists[None].sort()
  return lists


@pytest.mark.parametrize(('rule', 'changes'), RULES)
def test_what_a_round_trained_on_is_what_is_exported(searched, rule, changes):
  workdir, _, target, test, pool, draw = searched(rule, **changes)
  rng = np.random.default_rng(0)
  budgets = [np.full(len(target), 3), *rng.integers(3, 13, (2, len(target)))]
  for m, k_q in enumerate(budgets):
    end_round(workdir, m, k_q, target, test)
  expected = [drawn(draw, k_q, target, pool, rule) for k_q in budgets]
  for m in range(3):
    found = selected.load(workdir, of_round=m)
    assert exported(found) == expected[m]
    assert found.of == f'what round {m} trained on'
    names = {name for ids in expected[m].values() for name in ids}
    assert set(found.pool.ids[found.index]) == names
  assert exported(selected.load(workdir, of_round='last')) == expected[2]
  chosen = selected.load(workdir)
  assert exported(chosen) == expected[2]
  # Rank and distance are the search's, or there is none.
  rows = []
  path = workdir / 'selection' / 'neighbours.parquet'
  if rule != 'all':
    rows = pq.read_table(path).to_pylist()
  known = {(row['target_id'], row['source_id']): row for row in rows}
  for row in rows_of(chosen):
    pair = known.get((row['target_id'], row['source_id']), {})
    for name in ('rank', 'distance'):
      assert row[name] == pair.get(name)
  if rule == 'neighbours':
    assert not (chosen.rank_n < 0).any()
  if rule == 'labelled':
    assert 0 < (chosen.rank_n < 0).sum() < len(chosen.rank_n)
  # What was found can be had as before.
  if rule != 'all':
    assert len(selected.load(workdir, k=0).rank_n) == len(rows)
    assert len(selected.load(workdir, k=2).rank_n) == 2 * len(target)


@pytest.mark.parametrize(('rule', 'changes'), RULES)
def test_without_a_round_it_is_what_more_than_k_decides(
  searched, rule, changes
):
  workdir, c, target, _, pool, draw = searched(rule, **changes, rounds=0)
  files.write_json(workdir / 'results.json', {})
  first = drawn(draw, np.full(len(target), 3), target, pool, rule)
  found = selected.load(workdir, of_round=0)
  assert exported(found) == first
  assert found.of == 'what budget.initial=3 selects'
  found = selected.load(workdir)
  if rule == 'neighbours' and set(changes) <= {'budget.depth'}:
    assert found.of == 'all that were found'
    depth = c.budget.depth or c.budget.maximum
    assert len(found.rank_n) == depth * len(target)
  else:
    assert exported(found) == first


def test_by_features_there_is_no_certificate(workdir):
  run, train, pool, table = workdir
  settings = files.read_json(run / 'config.json')['settings']
  settings |= {'selection': 'features'}
  files.write_json(run / 'config.json', {'settings': settings})
  for name in (certificate.NAME, 'edges.npz'):
    (run / 'selection' / name).unlink()
  with pytest.raises(UserError, match='has not found yet'):
    selected.load(run)
  files.write_json(run / 'selection' / features.NAME, {'unreadable': {}})
  pairs = expected_pairs(train, pool, table)
  assert pairs_of(rows_of(selected.load(run))) == pairs


def refusal(workdir, *args):
  out = workdir / 'out.csv'
  command = ['export', f'--workdir={workdir}', '--to=csv', *args, str(out)]
  with pytest.raises(UserError) as refused:
    export._work(command)
  assert not out.exists()
  return str(refused.value)


def test_rounds_that_there_are_not_are_refused(searched):
  workdir, _, target, test, *_ = searched('neighbours')
  for m in ('1', 'last'):
    assert f'until a round has finished; {m} came' in refusal(
      workdir, f'--round={m}'
    )
  for m in range(2):
    end_round(workdir, m, np.full(len(target), 3), target, test)
  assert '0 to 1, or last; 2 came' in refusal(workdir, '--round=2')
  assert 'not -1' in refusal(workdir, '--round=-1')
  assert 'not first' in refusal(workdir, '--round=first')
  assert 'at least 0, not -1' in refusal(workdir, '--k=-1')


def test_runs_without_what_is_asked_for_are_refused(searched):
  workdir, c, *_ = searched('all')
  assert 'has not found yet what it selects' in refusal(workdir)
  files.write_json(workdir / 'results.json', {})
  assert 'selection=all has none: leave --k out' in refusal(workdir, '--k=3')
  c.selection = 'none'
  files.write_json(workdir / 'config.json', {'settings': c.to_dict()})
  assert 'borrows nothing (selection=none)' in refusal(workdir)


def test_the_command_says_what_it_wrote(searched, tmp_path, capsys):
  workdir, _, target, test, pool, draw = searched('random')
  k_q = np.full(len(target), 5)
  end_round(workdir, 0, k_q, target, test)
  many = len(drawn(draw, k_q, target, pool, 'random')[None])
  command = ['export', f'--workdir={workdir}', '--to=csv']
  export._work([*command, str(tmp_path / 'a.csv')])
  assert capsys.readouterr().out.splitlines()[-1] == (
    f'{many} source images for all target images alike (what round 0 trained '
    f'on) are in {tmp_path / "a.csv"}.'
  )
  export._work([*command, '--k=2', str(tmp_path / 'b.csv')])
  said = capsys.readouterr().out
  assert said.startswith(f'{2 * len(target)} pairs with ')
  assert '(the 2 nearest that were found) are in' in said
