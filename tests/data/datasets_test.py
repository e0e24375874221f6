import contextlib
import errno
import io
import os
import sys
import threading
import types
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sjft_jax import errors, paths
from sjft_jax.data import datasets, pipelines
from tests import store


def _write(root, *paths, data=b'x'):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def _folders(tmp_path, per_class=4, classes='ab'):
  """Training and test folders; a file's content is its path."""
  for part, count in (('train', per_class), ('test', 2)):
    for path in (f'{part}/{c}/{i}.jpg' for c in classes for i in range(count)):
      _write(tmp_path, path, data=path.encode())
  return {
    'kind': 'folder',
    'train': str(tmp_path / 'train'),
    'test': str(tmp_path / 'test'),
  }


def _pool(path):
  return datasets.open_pool({'main': {'dir': str(path)}})


# --- Folders ------------------------------------------------------------------


def test_a_folder_is_read_by_class_in_sorted_order(tmp_path):
  spec = _folders(tmp_path)
  _write(tmp_path, 'train/a/sub/2/X.JPeG', 'train/a/.hidden.png')
  _write(tmp_path, 'train/a/notes.txt', 'train/a/.git/1.png', 'train/.x/1.png')
  train, test = datasets.open_target(spec, seed=0)
  assert train.name == test.name == 'target'
  assert train.classes == test.classes == ('a', 'b')
  names = [*(f'a/{i}.jpg' for i in range(4)), 'a/sub/2/X.JPeG']
  names += [f'b/{i}.jpg' for i in range(4)]
  assert train.ids.tolist() == [f'target:train/{name}' for name in names]
  assert train.labels.tolist() == [0] * 5 + [1] * 4
  assert train.labels.dtype == np.int32
  assert test.ids.tolist()[0] == 'target:test/a/0.jpg'
  assert train.read(5) == b'train/b/0.jpg'
  assert test.read(3) == b'test/b/1.jpg'


def test_the_digest_follows_content_not_place(tmp_path):
  def digest(root, change=lambda root: None):
    _write(root, 'a/1.jpg', 'b/1.jpg', data=b'xx')
    change(root)
    return _pool(root).digest

  first = digest(tmp_path / '1')
  assert first == digest(tmp_path / '2')
  changes = (
    lambda root: _write(root, 'b/1.jpg', data=b'xxx'),
    lambda root: _write(root, 'b/2.jpg'),
    lambda root: (root / 'b/1.jpg').rename(root / 'b/2.jpg'),
    lambda root: (root / 'b').rename(root / 'c'),
  )
  others = {digest(tmp_path / f'c{i}', c) for i, c in enumerate(changes)}
  assert len(others | {first}) == 5


def test_names_that_are_not_utf8_give_ids_that_can_be_written(tmp_path):
  _write(tmp_path, 'a/1.jpg')
  raw = os.path.join(os.fsencode(tmp_path), b'a', b'caf\xe9.jpg')
  with open(raw, 'wb') as file:
    file.write(b'coffee')
  pool = _pool(tmp_path)
  assert pool.ids.tolist() == ['main:a/1.jpg', 'main:a/caf\\xe9.jpg']
  assert pool.read(1) == b'coffee'
  '\n'.join(pool.ids).encode('utf-8')
  _write(tmp_path, 'a/caf\\xe9.jpg')
  with pytest.raises(errors.UserError, match='same name'):
    _pool(tmp_path)


def test_links_are_followed_once_and_broken_ones_fail_when_read(tmp_path):
  _write(tmp_path, 'elsewhere/1.jpg', 'pool/a/2.jpg')
  (tmp_path / 'pool/a/link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'pool/a/loop').symlink_to(tmp_path / 'pool/a')
  (tmp_path / 'pool/a/z.jpg').symlink_to(tmp_path / 'gone.jpg')
  pool = _pool(tmp_path / 'pool')
  expected = ['main:a/2.jpg', 'main:a/link/1.jpg', 'main:a/z.jpg']
  assert pool.ids.tolist() == expected
  assert pool.sizes.tolist() == [1, 1, -1]
  with pytest.raises(FileNotFoundError):
    pool.read(2)


def test_folders_around_the_classes_are_left_out(tmp_path, bucket):
  _write(tmp_path / 'plain', 'a/1.jpg', 'b/x/2.jpg')
  _write(tmp_path / 'deep', 'set/images/a/1.jpg', 'set/images/b/x/2.jpg')
  store.fill(bucket, 'b', tmp_path / 'deep')
  plain = _pool(tmp_path / 'plain')
  for deep in (_pool(tmp_path / 'deep'), _pool('gs://b/')):
    assert deep.ids.tolist() == plain.ids.tolist()
    assert deep.digest == plain.digest
    assert deep.read(1) == b'x'


@pytest.mark.parametrize('deep', ['', 'set/'])
def test_an_image_beside_the_classes_does_not_make_one_of_them(
  tmp_path, bucket, deep
):
  names = (f'{deep}all/a/1.jpg', f'{deep}all/b/x/2.jpg', f'{deep}all/3.jpg')
  _write(tmp_path / 'set', *names)
  store.fill(bucket, 'b', tmp_path / 'set')
  for place in (tmp_path / 'set', 'gs://b/'):
    with pytest.raises(errors.UserError, match=r'all/3\.jpg .*move it') as e:
      _pool(place)
    assert '\n' not in str(e.value)
  # Of a test set it may be a class; and what has no classes in it is one.
  _write(tmp_path, 'train/all/1.jpg', 'train/other/1.jpg')
  spec = {
    'train': str(tmp_path / 'train'),
    'test': str(tmp_path / 'set' / deep),
  }
  assert set(datasets.open_target(spec, seed=0)[1].labels) == {0}
  _write(tmp_path, 'one/a/1.jpg', 'one/a/x/2.jpg', 'one/a/x/3.jpg')
  assert _pool(tmp_path / 'one').classes == ('main:a',)


def test_images_may_have_any_of_a_jpegs_suffixes(tmp_path):
  _write(tmp_path, 'a/1.JFIF', 'a/2.jpe', 'a/3.Jpeg', 'a/4.jpg')
  assert len(_pool(tmp_path)) == 4


def test_a_link_that_leads_up_adds_nothing(tmp_path):
  _write(tmp_path, 'pool/a/1.jpg', 'pool/b/2.jpg')
  (tmp_path / 'pool/a/up').symlink_to(tmp_path / 'pool')
  (tmp_path / 'pool/b/far').symlink_to(tmp_path)
  assert _pool(tmp_path / 'pool').ids.tolist() == [
    'main:a/1.jpg',
    'main:b/2.jpg',
  ]


def _no_folder(root):
  return ''


def _missing(root):
  return root / 'gone'


def _a_file(root):
  _write(root, 'file')
  return root / 'file'


def _nothing_in_it(root):
  return root


def _loose_images(root):
  _write(root, 'a/1.jpg', '2.jpg', '3.jpg')
  return root


def _an_empty_class(root):
  _write(root, 'a/1.jpg', 'b/notes.txt')
  return root


def _parts_of_a_set(root):
  _write(root, 'Train/a/1.jpg', 'test/a/2.jpg')
  return root


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (_parts_of_a_set, 'the parts of a set, Train, test: give .*/Train'),
    (_no_folder, 'none was given: --config.source.main.dir=DIR'),
    (_missing, 'gone does not exist'),
    (_a_file, 'file is not a folder'),
    (_nothing_in_it, 'holds no folder'),
    (_loose_images, r'directly in .* \(2.jpg, in all 2\)'),
    (_an_empty_class, 'every class; b has none'),
  ],
)
def test_unusable_folders_get_one_clear_line(tmp_path, make, message):
  with pytest.raises(errors.UserError, match=message) as e:
    _pool(make(tmp_path))
  assert str(e.value).startswith('source.main.dir needs')
  assert '\n' not in str(e.value)


# --- Csv ----------------------------------------------------------------------


def _csv(tmp_path, text, encoding='utf-8'):
  _write(tmp_path, 'im/1.jpg', 'im/2.jpg', 'im/3.jpg')
  (tmp_path / 'list.csv').write_text(text, encoding=encoding)
  return tmp_path / 'list.csv'


def test_a_csv_lists_images_and_labels(tmp_path):
  text = 'label,extra,path\r\n"dog, big",1,im/3.jpg\r\ncat,2,im/1.jpg\r\n'
  pool = _pool(_csv(tmp_path, text, 'utf-8-sig'))
  assert pool.classes == ('main:cat', 'main:dog, big')
  assert pool.ids.tolist() == ['main:im/3.jpg', 'main:im/1.jpg']
  assert pool.labels.tolist() == [1, 0]
  assert pool.read(0) == b'x'
  assert pool.sizes.tolist() == [1, 1]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'has nothing'),
    ('file,label\n', 'has file, label'),
    ('path,label\n', 'lists no image'),
    ('path,label\nim/1.jpg\n', 'line 2 .* lacks a path or a label'),
    ('path,label\nim/1.jpg,a\n../x.jpg,a\n', 'line 3 .* leads out'),
    ('path,label\n/im/1.jpg,a\n', '/im/1.jpg, an absolute path'),
    ('path,label\nim/1.jpg,a\nim//1.jpg,b\n', 'a second time, after line 2'),
    ('path,label\n"im/1.jpg,a\n', 'is none'),
  ],
)
def test_unusable_csvs_get_one_clear_line(tmp_path, text, message):
  with pytest.raises(errors.UserError, match=message) as e:
    _pool(_csv(tmp_path, text))
  assert '\n' not in str(e.value)


def test_a_folder_in_a_store_is_the_one_on_disk(tmp_path, bucket):
  names = ('b/2.jpg', 'b/x/1.PNG', 'a/.3.jpg', 'a/4.txt', 'c/5.gif', '.d/6.jpg')
  _write(tmp_path, *names, 'a-b/[7].jpg', 'a/8.webp', 'readme')
  store.fill(bucket, 'b/set', tmp_path)
  store.fill(bucket, 'b/set2', tmp_path)
  plain, stored = _pool(tmp_path), _pool('gs://b/set')
  assert len(plain) == 5
  assert stored.ids.tolist() == plain.ids.tolist()
  assert stored.digest == plain.digest
  assert stored.read(1) == plain.read(1) == b'x'


@pytest.mark.parametrize(
  ('name', 'message'),
  [('set/1.jpg', 'images lie directly'), ('other/1/1.jpg', 'does not exist')],
)
def test_other_stores_get_one_clear_line(tmp_path, bucket, name, message):
  _write(tmp_path, name)
  store.fill(bucket, 'b', tmp_path)
  with pytest.raises(errors.UserError, match=message):
    _pool('s3://b/set')


def test_a_csv_in_a_store_is_the_one_on_disk(tmp_path, bucket):
  text = 'path,label\nim/3.jpg,b\n./im//1.jpg,a\nim/none.jpg,b\n'
  path = _csv(tmp_path, text)
  store.fill(bucket, 'b/set', path.parent)
  plain, stored = _pool(path), _pool(f's3://b/set/{path.name}')
  assert stored.digest == plain.digest
  assert stored.sizes.tolist() == [1, 1, -1]
  assert stored.read(1) == b'x'
  with pytest.raises(OSError, match='none'):
    stored.read(2)


@pytest.mark.parametrize(
  'name', ['../x.jpg', 'im/../../x.jpg', '/b/x.jpg', '../set2/x.jpg', '..']
)
def test_a_csv_does_not_lead_out_of_its_folder(tmp_path, bucket, name):
  path = _csv(tmp_path, f'path,label\n{name},a\n')
  store.fill(bucket, 'b/set', path.parent)
  for place in (path, f's3://b/set/{path.name}'):
    with pytest.raises(errors.UserError, match=r'leads out|an absolute'):
      _pool(place)


def test_the_images_of_a_linked_csv_lie_beside_the_link(tmp_path, monkeypatch):
  # As in a cache of downloads, where every file is a link to what is kept
  # elsewhere by another name.
  _write(tmp_path, 'kept/0a', data=b'path,label\nim/1.jpg,a\nim/2.jpg,b\n')
  _write(tmp_path, 'kept/0b', 'kept/im/1.jpg', data=b'other')
  _write(tmp_path, 'set/im/1.jpg', data=b'one')
  (tmp_path / 'set/im/2.jpg').symlink_to(tmp_path / 'kept/0b')
  (tmp_path / 'set/list.csv').symlink_to(tmp_path / 'kept/0a')
  monkeypatch.chdir(tmp_path)
  for path in (
    tmp_path / 'set/list.csv',
    'set/list.csv',
    'kept/../set/list.csv',
  ):
    pool = _pool(path)
    assert [pool.read(i) for i in range(2)] == [b'one', b'other']
    assert pool.sizes.tolist() == [3, 5]


def test_a_csv_that_was_linked_alone_is_read_where_its_images_lie(tmp_path):
  _write(tmp_path, 'set/im/1.jpg', data=b'one')
  _write(tmp_path, 'set/list.csv', data=b'path,label\nim/1.jpg,a\n')
  (tmp_path / 'home').mkdir()
  (tmp_path / 'home/list.csv').symlink_to(tmp_path / 'set/list.csv')
  pool = _pool(tmp_path / 'home/list.csv')
  assert pool.read(0) == b'one'
  assert pool.digest == _pool(tmp_path / 'set/list.csv').digest


def test_links_that_are_neither_images_nor_classes_do_not_matter(tmp_path):
  _write(tmp_path, 'a/1.jpg', 'b/2.jpg')
  before = _pool(tmp_path).digest
  for name in ('README.md', '.old', 'a/.old', 'a/notes.txt'):
    (tmp_path / name).symlink_to(tmp_path / 'nowhere')
  assert _pool(tmp_path).digest == before
  (tmp_path / '001.ak47').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(errors.UserError, match=r'001\.ak47 is a link that leads'):
    _pool(tmp_path)


def test_a_csv_does_not_lead_out_of_its_folder_by_a_link(tmp_path):
  _write(tmp_path, 'away/deep/0.jpg', 'away/1.jpg', data=b'secret')
  path = _csv(tmp_path / 'set', 'path,label\nlink/../1.jpg,a\n')
  (path.parent / 'link').symlink_to(tmp_path / 'away/deep')
  with pytest.raises(FileNotFoundError):
    _pool(path).read(0)


def test_an_image_that_is_too_large_is_not_read(tmp_path, bucket, monkeypatch):
  monkeypatch.setattr(paths, 'MAX_BYTES', 10)
  _write(tmp_path, 'a/1.tiff', data=bytes(11))
  _write(tmp_path, 'a/2.tiff', data=bytes(10))
  _write(tmp_path, 'a/3.tiff', data=b'')
  store.fill(bucket, 'b', tmp_path)
  for place in (tmp_path, 'gs://b/'):
    pool = _pool(place)
    found = dict(pipelines.find_bad(pool, threads=1))
    assert 'larger than 10 bytes' in found[0]
    assert not found[0].startswith(pipelines.UNREADABLE)
    assert pool.read(1) == bytes(10)
    assert pool.read(2) == b''


def test_prepared_sets_must_lie_on_a_disk(bucket):
  spec = {'kind': 'tfds', 'name': 'any', 'dir': 'gs://b/tfds', 'split': 'train'}
  with pytest.raises(errors.UserError, match='must lie on a disk'):
    datasets.open_pool({'main': spec})


# --- The target ---------------------------------------------------------------


def test_a_training_class_may_lack_test_images(tmp_path):
  spec = _folders(tmp_path, classes='abc')
  for i in range(2):
    (tmp_path / f'test/a/{i}.jpg').unlink()
    (tmp_path / f'test/b/{i}.jpg').unlink()
  (tmp_path / 'test/b').rmdir()
  train, test = datasets.open_target(spec, seed=0)
  assert test.classes == train.classes == ('a', 'b', 'c')
  assert test.labels.tolist() == [2, 2]


def test_a_class_is_the_same_however_its_accents_are_written(tmp_path):
  name = unicodedata.normalize('NFC', 'café')
  _write(tmp_path, f'train/{name}/1.jpg', 'train/a/1.jpg', 'test/a/2.jpg')
  _write(tmp_path, f'test/{unicodedata.normalize("NFD", name)}/2.jpg')
  parts = {part: str(tmp_path / part) for part in ('train', 'test')}
  train, test = datasets.open_target({'kind': 'folder'} | parts, seed=0)
  assert test.classes == train.classes == ('a', name)
  assert test.labels.tolist() == [0, 1]


def test_unknown_test_classes_are_named_five_at_most(tmp_path):
  spec = _folders(tmp_path)
  _write(tmp_path, *(f'test/new{i}/1.jpg' for i in range(7)))
  with pytest.raises(errors.UserError, match=r'new0, .*new4 and 2 more') as e:
    datasets.open_target(spec, seed=0)
  assert 'new5' not in str(e.value)


def test_a_draw_has_its_size_and_leaves_the_rest_for_test(tmp_path):
  spec = _folders(tmp_path, per_class=6) | {'test': '', 'per_class': 4}
  whole = {f'target:train/{c}/{i}.jpg' for c in 'ab' for i in range(6)}
  drawn = {}
  for seed in range(5):
    train, test = datasets.open_target(spec, seed=seed)
    assert np.bincount(train.labels).tolist() == [4, 4]
    assert {*train.ids} | {*test.ids} == whole
    assert not {*train.ids} & {*test.ids}
    drawn[seed] = tuple(train.ids)
    again, _ = datasets.open_target(spec, seed=seed)
    assert tuple(again.ids) == drawn[seed]
    assert again.digest == train.digest != test.digest
    for i in range(len(test)):
      assert test.read(i).decode() == test.ids[i].removeprefix('target:')
  assert len(set(drawn.values())) > 1


def test_a_draw_with_test_images_of_its_own_keeps_those(tmp_path):
  spec = _folders(tmp_path) | {'per_class': 1}
  train, test = datasets.open_target(spec, seed=0)
  assert len(train) == 2
  assert len(test) == 4


def test_a_share_of_each_class_is_held_out(tmp_path):
  spec = _folders(tmp_path, per_class=10) | {'test': '', 'held_out': 0.25}
  _write(tmp_path, 'train/c/only.jpg')
  parts = {}
  for seed in (0, 0, 1):
    train, test = datasets.open_target(spec, seed=seed)
    assert np.bincount(test.labels, minlength=3).tolist() == [2, 2, 0]
    assert np.bincount(train.labels).tolist() == [8, 8, 1]
    assert not {*train.ids} & {*test.ids}
    assert parts.setdefault(seed, tuple(test.ids)) == tuple(test.ids)
  assert parts[0] != parts[1]
  few, _ = datasets.open_target(spec | {'per_class': 1}, seed=0)
  assert np.bincount(few.labels).tolist() == [1, 1, 1]


def test_folds_share_the_training_images_and_open_no_others(tmp_path):
  spec = _folders(tmp_path, per_class=7) | {'per_class': 5, 'test': 'nowhere'}
  whole, _ = datasets.open_target(spec | {'test': spec['train']}, seed=3)
  seen, sizes = [], []
  for fold in range(3):
    spec |= {'folds': 3, 'fold': fold}
    train, test = datasets.open_target(spec, seed=3)
    assert {*train.ids} | {*test.ids} == {*whole.ids}
    assert not {*train.ids} & {*test.ids}
    assert set(np.bincount(test.labels)) <= {1, 2}
    seen += test.ids.tolist()
    sizes.append(len(test))
  assert sorted(seen) == sorted(whole.ids)
  # Ten images; classes take turns in which fold is short.
  assert sorted(sizes) == [3, 3, 4]
  with pytest.raises(errors.UserError, match='two training images of every'):
    datasets.open_target(spec | {'per_class': 1}, seed=0)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'held_out': 0.5}, 'held_out is a share'),
    ({'held_out': 1.0, 'test': ''}, 'held_out is a share'),
    ({'per_class': 5}, 'needs 5 training images of every class; a has 4'),
    ({'test': ''}, 'needs test images'),
    ({'test': '', 'per_class': 4}, 'needs test images'),
    ({'train': ''}, 'target.train needs .* none was given'),
    ({'kind': 'zip'}, "target.kind is one of folder, packaged, tfds; 'zip'"),
  ],
)
def test_unusable_targets_get_one_clear_line(tmp_path, change, message):
  with pytest.raises(errors.UserError, match=message):
    datasets.open_target(_folders(tmp_path) | change, seed=0)


def test_classes_are_parted_in_one_pass_in_the_order_of_their_ids():
  class Counted(np.ndarray):
    def __getitem__(self, index):
      looks.append(1)
      return super().__getitem__(index)

  looks, rng = [], np.random.default_rng(0)
  labels = rng.permutation(np.repeat([0, 1, 2, 4], [1, 50, 9, 30]))
  dataset = datasets.Dataset(
    name='x',
    classes=tuple('abcde'),
    ids=np.array([f'x:{i}' for i in rng.permutation(90)]),
    labels=labels.astype(np.int32).view(Counted),
    sizes=np.ones(90, int),
    read=lambda i: b'',
  )
  found = dict(datasets._by_class(dataset))
  assert len(looks) == 1
  order = sorted(range(90), key=lambda i: dataset.ids[i])
  assert {name: index.tolist() for name, index in found.items()} == {
    name: [i for i in order if labels[i] == label]
    for label, name in enumerate('abcde')
  }


def test_packaged_digits():
  spec = {'kind': 'packaged', 'name': 'digits', 'per_class': 5}
  train, test = datasets.open_target(spec, seed=3)
  assert (len(train), len(test)) == (50, 1747)
  assert train.classes == tuple('0123456789')
  assert train.read(0).startswith(b'\x89PNG')


# --- Pools --------------------------------------------------------------------


def test_a_pool_lays_sources_side_by_side(tmp_path):
  _write(tmp_path, 'x/a/1.jpg', 'x/b/1.jpg', data=b'x')
  _write(tmp_path, 'y/b/1.jpg', 'y/b/2.jpg', data=b'yy')
  # Neither order nor equal class names are changed.
  specs = {name: {'dir': str(tmp_path / name)} for name in 'yx'}
  pool = datasets.open_pool(specs)
  assert pool.classes == ('y:b', 'x:a', 'x:b')
  assert pool.ids.tolist() == [
    'y:b/1.jpg',
    'y:b/2.jpg',
    'x:a/1.jpg',
    'x:b/1.jpg',
  ]
  assert pool.labels.tolist() == [0, 0, 1, 2]
  assert pool.sources == ('y', 'x')
  assert pool.source.tolist() == [0, 0, 1, 1]
  assert [pool.read(i) for i in range(4)] == [b'yy', b'yy', b'x', b'x']
  part = pool.subset(np.array([3, 0])).subset(np.array([0]))
  assert part.ids.tolist() == ['x:b/1.jpg']
  assert part.source.tolist() == [1]
  assert part.read(0) == b'x'
  assert part.classes == pool.classes


def test_pools_need_different_sources(tmp_path):
  _write(tmp_path, 'x/a/1.jpg')
  (tmp_path / 'y').symlink_to(tmp_path / 'x')
  specs = {name: {'dir': str(tmp_path / name)} for name in 'xy'}
  with pytest.raises(errors.UserError, match='are the same'):
    datasets.open_pool(specs)
  with pytest.raises(errors.UserError, match='needs a source'):
    datasets.open_pool({})


def test_a_source_can_be_left_out(tmp_path):
  _write(tmp_path, 'one/a/1.jpg', 'two/b/2.jpg')
  specs = {n: {'dir': str(tmp_path / n)} for n in ('one', 'two')}
  specs['one']['use'] = False
  specs['one']['dir'] = 'nowhere'
  assert datasets.open_pool(specs).sources == ('two',)
  specs['two']['use'] = False
  with pytest.raises(errors.UserError, match='needs a source'):
    datasets.open_pool(specs)


def test_a_quota_draws_evenly_over_the_classes(tmp_path):
  for name, count in (('a', 2), ('b', 9), ('c', 20)):
    _write(tmp_path, *(f'x/{name}/{i:02d}.jpg' for i in range(count)))
  _write(tmp_path, *(f'y/d/{i}.jpg' for i in range(5)))

  def pool(quota):
    x = {'dir': str(tmp_path / 'x'), 'quota': quota}
    return datasets.open_pool({'x': x, 'y': {'dir': str(tmp_path / 'y')}})

  drawn = pool(13)
  assert np.bincount(drawn.source).tolist() == [13, 5]
  count = np.bincount(drawn.labels)
  assert count[0] == 2
  assert sorted(count[1:3]) == [5, 6]
  assert {*drawn.ids} <= {*pool(0).ids}
  assert drawn.digest == pool(13).digest
  assert {*pool(5).ids} < {*drawn.ids}
  # Not the first of each class.
  assert {*drawn.ids[drawn.labels == 2]} != {
    f'x:c/{i:02d}.jpg' for i in range(count[2])
  }
  for quota in (2, 32):
    with pytest.raises(errors.UserError, match=r'source.x.quota needs'):
      pool(quota)


# --- TFDS ---------------------------------------------------------------------


class SjftTiny(tfds.core.GeneratorBasedBuilder):
  """Five training and two test images, with or without file names."""

  VERSION = tfds.core.Version('1.2.0')
  BUILDER_CONFIGS = (
    tfds.core.BuilderConfig(name='named'),
    tfds.core.BuilderConfig(name='unnamed'),
  )

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
    }
    if self.builder_config.name == 'named':
      features['file_name'] = tfds.features.Text()
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(5),
      'test': self._generate_examples(2),
    }

  def _generate_examples(self, count):
    for i in range(count):
      example = {'image': io.BytesIO(_picture(i)), 'label': i % 2}
      if self.builder_config.name == 'named':
        example['file_name'] = f'{i}.png'
      yield i, example


def _picture(i):
  buffer = io.BytesIO()
  Image.fromarray(np.full((3, 4, 3), i, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp('tfds'))
  for config in ('named', 'unnamed'):
    builder = SjftTiny(
      data_dir=directory, config=config, file_format='array_record'
    )
    builder.download_and_prepare()
  return directory


def _tfds_spec(directory, config):
  return {
    'kind': 'tfds',
    'name': f'sjft_tiny/{config}',
    'dir': directory,
    'train': 'train',
    'test': 'test',
  }


def test_tfds_is_read_without_tensorflow(prepared):
  train, test = datasets.open_target(_tfds_spec(prepared, 'named'), seed=0)
  assert train.classes == test.classes == ('cat', 'dog')
  # TFDS stores records in the order of hashed keys.
  names = {f'target:train/{i}.png' for i in range(5)}
  assert {*train.ids} == names
  assert len(test) == 2
  for i in range(len(train)):
    number = int(train.ids[i].removeprefix('target:train/')[0])
    assert train.read(i) == _picture(number)
    assert train.labels[i] == number % 2
    assert train.sizes[i] == len(_picture(number))
  assert '1.2.0' in train.version
  assert 'tensorflow' not in sys.modules


@pytest.fixture
def of_records(tmp_path, monkeypatch):
  """Function of labels, names and features to the pool of such a TFDS set."""
  reads = []

  def make(labels, names=('cat', 'dog'), **features):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=names),
    } | features
    records = [{'image': b'x', 'label': label} for label in labels]
    info = types.SimpleNamespace(
      splits={'test': 2}, features=features, full_name='any/1.0.0'
    )

    class Records(list):
      def __getitem__(self, i):
        reads.append(i)
        return super().__getitem__(i)

      def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    builder = types.SimpleNamespace(
      info=info,
      data_dir=str(shard.parent),
      as_data_source=lambda *args, **kwargs: Records(records),
    )
    monkeypatch.setattr(tfds, 'builder', lambda *args, **kwargs: builder)
    spec = {'kind': 'tfds', 'name': 'any', 'dir': '', 'split': 'test'}
    return datasets.open_pool({'main': spec})

  shard = tmp_path / 'any' / 'any-test.array_record-00000-of-00001'
  _write(tmp_path, shard)
  make.reads, make.shard = reads, shard
  monkeypatch.setattr(datasets, '_opened', {})
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return make


@pytest.mark.parametrize('labels', [(0, -1), (-1, -1), ()])
def test_images_without_labels_are_refused(of_records, labels):
  with pytest.raises(errors.UserError, match='needs images with labels'):
    of_records(labels)


@pytest.mark.parametrize(
  ('feature', 'kind'),
  [
    ('label', tfds.features.Scalar(dtype=np.int64)),
    ('label', tfds.features.Text()),
    ('label', tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2))),
    ('image', tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8)),
  ],
)
def test_other_features_are_refused_before_they_are_read(
  of_records, feature, kind
):
  said = rf'image \(Image\) .*{feature} \({type(kind).__name__}\)'
  with pytest.raises(errors.UserError, match=said) as e:
    of_records((0, 1), **{feature: kind})
  assert '\n' not in str(e.value)
  assert not of_records.reads


def test_names_that_no_image_has_are_no_classes(of_records):
  pool = of_records((3, 1, 3), names=tuple('abcde'))
  assert pool.classes == ('main:b', 'main:d')
  assert pool.labels.tolist() == [1, 0, 1]
  assert pool.labels.dtype == np.int32
  os.utime(of_records.shard, ns=(1, 1))
  assert of_records((1, 0)).classes == ('main:cat', 'main:dog')


def test_the_images_of_a_prepared_set_are_read_once_to_list_them(
  of_records, monkeypatch
):
  first = of_records((0, 1, 1))
  assert of_records.reads == [0, 1, 2]
  again = of_records((0, 1, 1))
  monkeypatch.setattr(datasets, '_opened', {})  # Another process.
  later = of_records((0, 1, 1))
  assert of_records.reads == [0, 1, 2]
  assert first.digest == again.digest == later.digest
  assert later.read(1) == b'x'
  # What says that they are other records: a file's time, or their number.
  os.utime(of_records.shard, ns=(1, 1))
  assert of_records((1, 0, 0)).labels.tolist() == [1, 0, 0]
  monkeypatch.setattr(datasets, '_opened', {})
  assert len(of_records((1, 0))) == 2


@pytest.mark.parametrize('damage', [b'', b'no archive', None])
def test_a_cache_that_cannot_be_used_is_none(of_records, monkeypatch, damage):
  digest = of_records((0, 1)).digest
  (kept,) = (paths.cache() / 'tfds').iterdir()
  kept.unlink()
  if damage is None:
    kept.mkdir()
  else:
    kept.write_bytes(damage)
  monkeypatch.setattr(datasets, '_opened', {})
  assert of_records((0, 1)).digest == digest
  monkeypatch.setattr(datasets, '_opened', {})
  monkeypatch.setenv('XDG_CACHE_HOME', os.devnull)
  assert of_records((0, 1)).digest == digest


def test_a_folder_that_cannot_be_opened_stops_the_run(tmp_path, monkeypatch):
  (tmp_path / 'cat' / 'deep').mkdir(parents=True)
  (tmp_path / 'cat' / '1.png').write_bytes(b'1')
  (tmp_path / 'cat' / 'deep' / '2.png').write_bytes(b'2')
  scan = os.scandir

  def closed(path):
    if str(path).endswith('deep'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scan(path)

  monkeypatch.setattr(os, 'scandir', closed)
  with pytest.raises(errors.UserError, match='deep cannot be read now'):
    datasets.open_pool({'main': {'dir': str(tmp_path)}})


def _failing(monkeypatch, name, number=errno.EIO):
  """Whoever asks the disk about a path of this ending gets an error."""
  ask = os.stat

  def stat(path, *args, **kwargs):
    if str(path).endswith(name):
      raise OSError(number, os.strerror(number), str(path))
    return ask(path, *args, **kwargs)

  monkeypatch.setattr(os, 'stat', stat)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize('listed', [False, True])
def test_a_size_that_is_not_known_now_is_refused_by_name(
  tmp_path, monkeypatch, listed, number
):
  text = 'path,label\nim/1.jpg,a\nim/2.jpg,a\n'
  path = _csv(tmp_path, text) if listed else tmp_path
  if not listed:
    _write(tmp_path, 'im/1.jpg', 'im/2.jpg')
  digest = _pool(path).digest
  with monkeypatch.context() as patch:
    _failing(patch, '2.jpg', number)
    with pytest.raises(errors.UserError, match=r'im/2.jpg cannot be read now'):
      _pool(path)
  assert _pool(path).digest == digest


def test_a_path_that_leads_nowhere_for_good_is_a_missing_image(
  tmp_path, monkeypatch
):
  _write(tmp_path, 'a/1.jpg', 'a/2.jpg')
  for number in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
    with monkeypatch.context() as patch:
      _failing(patch, '2.jpg', number)
      assert _pool(tmp_path).sizes.tolist() == [1, -1]


def test_a_class_whose_disk_is_away_is_no_class_less(tmp_path, monkeypatch):
  _write(tmp_path / 'set', 'a/1.jpg')
  _write(tmp_path / 'disk', 'b/2.jpg')
  (tmp_path / 'set/b').symlink_to(tmp_path / 'disk/b')
  assert _pool(tmp_path / 'set').classes == ('main:a', 'main:b')
  scan = os.scandir

  class Away:
    """An entry of a listing of which the disk tells no more."""

    def __init__(self, entry):
      self.name, self.path = entry.name, entry.path

    def is_dir(self):
      raise OSError(errno.ESTALE, 'Stale file handle', self.path)

  @contextlib.contextmanager
  def listed(path):
    with scan(path) as entries:
      yield [Away(e) if e.name == 'b' else e for e in entries]

  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', listed)
    for root in ('set', 'disk', '.'):
      with pytest.raises(errors.UserError, match=r'/b cannot be read now .Sta'):
        _pool(tmp_path / root)
  (tmp_path / 'disk/b/2.jpg').unlink()
  (tmp_path / 'disk/b').rmdir()
  with pytest.raises(errors.UserError, match='set/b is a link that leads nowh'):
    _pool(tmp_path / 'set')


def test_many_sizes_are_asked_for_at_once_and_stay_in_order(
  tmp_path, monkeypatch
):
  for i in range(100):
    _write(tmp_path, f'{i % 3}/{i:02d}.jpg', data=b'x' * i)
  (tmp_path / '0/zz.jpg').symlink_to(tmp_path / 'gone')
  alone = _pool(tmp_path)
  monkeypatch.setattr(datasets, '_MANY', 10)
  monkeypatch.setattr(datasets, '_ASKING', 3)
  # Three questions are open before one is answered.
  meeting, ask = threading.Barrier(3, timeout=30), datasets._size

  def size(path):
    if path.endswith(('/00.jpg', '/09.jpg', '/18.jpg')):
      meeting.wait()
    return ask(path)

  monkeypatch.setattr(datasets, '_size', size)
  together = _pool(tmp_path)
  assert together.digest == alone.digest
  assert together.ids.tolist() == alone.ids.tolist()
  assert together.sizes.tolist() == alone.sizes.tolist()


def test_the_place_of_a_prepared_set_may_be_written_in_several_ways(
  prepared, monkeypatch
):
  monkeypatch.setenv('HOME', os.path.dirname(prepared))
  spec = _tfds_spec(prepared, 'named') | {'split': 'train'}
  home = spec | {'dir': f'~/{os.path.basename(prepared)}'}
  plain, found = (datasets.open_pool({'x': s}) for s in (spec, home))
  assert found.digest == plain.digest
  for other in (home, spec | {'dir': f'{prepared}/'}):
    with pytest.raises(errors.UserError, match='are the same'):
      datasets.open_pool({'x': spec, 'y': other})


def test_tfds_without_file_names_counts(prepared):
  train, _ = datasets.open_target(_tfds_spec(prepared, 'unnamed'), seed=0)
  assert train.ids.tolist() == [f'target:train/{i:08d}' for i in range(5)]
  named, _ = datasets.open_target(_tfds_spec(prepared, 'named'), seed=0)
  assert named.digest != train.digest


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': 'sjft_unknown'}, "needs a TFDS set; 'sjft_unknown' is neither"),
    ({'name': ''}, "needs a TFDS set; '' is neither"),
    ({'name': 'caltech101'}, 'needs caltech101 prepared as array_record'),
    ({'test': 'val'}, "needs a split .*train, test.*; 'val' came"),
  ],
)
def test_unusable_tfds_sets_get_one_clear_line(prepared, change, message):
  spec = _tfds_spec(prepared, 'named') | change
  with pytest.raises(errors.UserError, match=message) as e:
    datasets.open_target(spec, seed=0)
  assert '\n' not in str(e.value)
