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
from sjft_jax import certificate, export_formats, files, selected, tables
from sjft_jax.data import datasets, recorded
from sjft_jax.errors import UserError

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
  return [{k: types.get(k, str)(v) for k, v in row.items()} for row in rows]


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


@pytest.mark.parametrize('shard', [2, 100])
def test_shards_hold_images_labels_and_pairs(
  workdir, tmp_path, monkeypatch, shard
):
  run, train, pool, table = workdir
  monkeypatch.setattr(export_formats, 'SHARD', shard)
  export_formats.to_tar(selected.load(run), tmp_path / 'out')
  samples = {}
  shards = sorted((tmp_path / 'out').iterdir())
  assert len(shards) == -(-4 // shard)
  for path in shards:
    with tarfile.open(path) as tar:
      for member in tar:
        # WebDataset: what stands before the first dot names the sample.
        key, _, field = member.name.partition('.')
        samples.setdefault(key, {})[field] = tar.extractfile(member).read()
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


@pytest.mark.parametrize('shard', [3, 100])
def test_a_tfds_set_holds_images_labels_and_pairs(
  workdir, tmp_path, monkeypatch, shard
):
  run, train, pool, table = workdir
  monkeypatch.setattr(recorded, 'PER_SHARD', shard)
  export_formats.to_tfds(selected.load(run), tmp_path / 'out')
  builder = tfds.builder_from_directory(str(tmp_path / 'out'))
  records = builder.as_data_source(
    'train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  features = builder.info.features
  assert tuple(features['label'].names) == pool.classes
  target_classes = features['pairs']['target_label'].names
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
  with pytest.raises(UserError, match='finished search by descriptors'):
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
