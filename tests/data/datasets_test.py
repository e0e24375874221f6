import unicodedata

import numpy as np
import pytest

from sjft_jax import errors
from sjft_jax.data import datasets
from sjft_jax.data.dataset import Dataset
from tests.data import trees

# --- The target ---------------------------------------------------------------


def test_a_training_class_may_lack_test_images(tmp_path):
  spec = trees.target(tmp_path, classes='abc')
  for i in range(2):
    (tmp_path / f'test/a/{i}.jpg').unlink()
    (tmp_path / f'test/b/{i}.jpg').unlink()
  (tmp_path / 'test/b').rmdir()
  train, test = datasets.open_target(spec, seed=0)
  assert test.classes == train.classes == ('a', 'b', 'c')
  assert test.labels.tolist() == [2, 2]


def test_a_class_is_the_same_however_its_accents_are_written(tmp_path):
  name = unicodedata.normalize('NFC', 'café')
  trees.write(tmp_path, f'train/{name}/1.jpg', 'train/a/1.jpg', 'test/a/2.jpg')
  trees.write(tmp_path, f'test/{unicodedata.normalize("NFD", name)}/2.jpg')
  parts = {part: str(tmp_path / part) for part in ('train', 'test')}
  train, test = datasets.open_target({'kind': 'folder'} | parts, seed=0)
  assert test.classes == train.classes == ('a', name)
  assert test.labels.tolist() == [0, 1]


def test_unknown_test_classes_are_named_five_at_most(tmp_path):
  spec = trees.target(tmp_path)
  trees.write(tmp_path, *(f'test/new{i}/1.jpg' for i in range(7)))
  with pytest.raises(errors.UserError, match=r'new0, .*new4 and 2 more') as e:
    datasets.open_target(spec, seed=0)
  assert 'new5' not in str(e.value)


def test_a_draw_has_its_size_and_leaves_the_rest_for_test(tmp_path):
  spec = trees.target(tmp_path, per_class=6) | {'test': '', 'per_class': 4}
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
  spec = trees.target(tmp_path) | {'per_class': 1}
  train, test = datasets.open_target(spec, seed=0)
  assert len(train) == 2
  assert len(test) == 4


def test_a_share_of_each_class_is_held_out(tmp_path):
  spec = trees.target(tmp_path, per_class=10) | {'test': '', 'held_out': 0.25}
  trees.write(tmp_path, 'train/c/only.jpg')
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
  spec = trees.target(tmp_path, per_class=7) | {
    'per_class': 5,
    'test': 'nowhere',
  }
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
    datasets.open_target(trees.target(tmp_path) | change, seed=0)


def test_classes_are_parted_in_one_pass_in_the_order_of_their_ids():
  class Counted(np.ndarray):
    def __getitem__(self, index):
      looks.append(1)
      return super().__getitem__(index)

  looks, rng = [], np.random.default_rng(0)
  labels = rng.permutation(np.repeat([0, 1, 2, 4], [1, 50, 9, 30]))
  dataset = Dataset(
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
  trees.write(tmp_path, 'x/a/1.jpg', 'x/b/1.jpg', data=b'x')
  trees.write(tmp_path, 'y/b/1.jpg', 'y/b/2.jpg', data=b'yy')
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
  trees.write(tmp_path, 'x/a/1.jpg')
  (tmp_path / 'y').symlink_to(tmp_path / 'x')
  specs = {name: {'dir': str(tmp_path / name)} for name in 'xy'}
  with pytest.raises(errors.UserError, match='are the same'):
    datasets.open_pool(specs)
  with pytest.raises(errors.UserError, match='needs a source'):
    datasets.open_pool({})


def test_a_source_can_be_left_out(tmp_path):
  trees.write(tmp_path, 'one/a/1.jpg', 'two/b/2.jpg')
  specs = {n: {'dir': str(tmp_path / n)} for n in ('one', 'two')}
  specs['one']['use'] = False
  specs['one']['dir'] = 'nowhere'
  assert datasets.open_pool(specs).sources == ('two',)
  specs['two']['use'] = False
  with pytest.raises(errors.UserError, match='needs a source'):
    datasets.open_pool(specs)


def test_a_quota_draws_evenly_over_the_classes(tmp_path):
  for name, count in (('a', 2), ('b', 9), ('c', 20)):
    trees.write(tmp_path, *(f'x/{name}/{i:02d}.jpg' for i in range(count)))
  trees.write(tmp_path, *(f'y/d/{i}.jpg' for i in range(5)))

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
