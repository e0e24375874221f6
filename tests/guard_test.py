import csv
import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from configs import folders
from sjft_jax import guard, repeats
from sjft_jax.data import datasets, packaged, preprocess
from sjft_jax.errors import UserError


def write(root, path, data):
  path = root / path
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def mirrored(data):
  image = preprocess.decode(data)[:, ::-1]
  return cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """4 training, 6 test, 30 source images; 2 test, 1 training in the source."""
  root = tmp_path_factory.mktemp('images')
  images = packaged.load('photographs')
  files = [
    images.files[i]
    for i in range(0, len(images.files), 3)
    if preprocess.decode(images.files[i]).std() > 30
  ]
  for i, data in enumerate(files[:40]):
    part = 'train' if i < 4 else 'test' if i < 10 else 'source'
    write(root, f'{part}/{"ab"[i % 2]}/{part}-{i}.png', data)
  write(root, 'source/a/copy.png', files[4])
  write(root, 'source/b/mirrored.jpg', mirrored(files[7]))
  write(root, 'source/b/training.png', files[1])
  return root


def settings(root, **changes):
  c = folders.get_config()
  c.target.train, c.target.test = str(root / 'train'), str(root / 'test')
  c.source.main.dir = str(root / 'source')
  c.threads = 2
  c.update_from_flattened_dict(changes)
  return c


def opened(c):
  train, test = datasets.open_target(c.target, c.seed)
  return train, test, datasets.open_pool(c.source)


LEAKS = ['main:a/copy.png', 'main:b/mirrored.jpg']


def rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_what_repeats_a_test_image_is_withheld_and_listed(root, tmp_path):
  c = settings(root)
  train, test, pool = opened(c)
  left = guard.withhold(c, train, test, pool, tmp_path)
  assert sorted({*pool.ids} - {*left.ids}) == LEAKS
  assert left.classes == pool.classes
  listed = rows(tmp_path / 'guard' / 'quarantine.csv')
  assert [(r['source_id'], r['target_id'], r['tests']) for r in listed] == [
    ('main:a/copy.png', 'target:test/a/test-4.png', 'bytes+picture'),
    ('main:b/mirrored.jpg', 'target:test/b/test-7.png', 'picture'),
  ]
  assert all(float(r['similarity']) > 0.75 for r in listed)
  (repeat,) = rows(tmp_path / 'guard' / 'repeats.csv')
  assert repeat['source_id'] == 'main:b/training.png'
  assert repeat['repeated'] == '1'
  assert repeat['target_id'] == 'target:train/b/train-1.png'
  record = json.loads((tmp_path / 'guard' / 'record.json').read_text())
  assert record['test_images_exposed'] == 2
  assert record['source_images_withheld_by'] == {
    'name': 0,
    'bytes': 1,
    'picture': 2,
  }
  pairs = sorted((tmp_path / 'guard' / 'pairs').iterdir())
  assert [p.name for p in pairs] == ['000000.jpg', '000001.jpg']
  assert preprocess.decode(pairs[0].read_bytes()).shape == (128, 256, 3)


def test_repeats_inside_the_target_are_listed_and_kept(root, tmp_path):
  shutil.copytree(root, tmp_path / 'images')
  source = tmp_path / 'images' / 'train' / 'a' / 'train-0.png'
  write(tmp_path / 'images', 'test/b/again.jpg', mirrored(source.read_bytes()))
  write(tmp_path / 'images', 'train/a/twice.png', source.read_bytes())
  c = settings(tmp_path / 'images')
  train, test, pool = opened(c)
  guard.withhold(c, train, test, pool, tmp_path / 'run')
  listed = rows(tmp_path / 'run' / 'guard' / 'target_repeats.csv')
  first, twice = 'target:train/a/train-0.png', 'target:train/a/twice.png'
  again = 'target:test/b/again.jpg'
  # One row for each image: the first that it repeats, and how many.
  assert [(r['id'], r['repeats_id'], r['repeated']) for r in listed] == [
    (again, first, '2'),
    (twice, first, '1'),
  ]
  found = guard.exposure(c, tmp_path / 'run', test, [])
  assert found['target_pairs'] == 3
  assert found['target_pairs_across_train_and_test'] == 2
  assert found['test_images_exposed'] == 2


def test_the_cache_holds_tables_of_the_source_alone(root, tmp_path):
  c = settings(root, **{'guard.cache': str(tmp_path / 'hashes')})
  train, test, pool = opened(c)
  guard.withhold(c, train, test, pool, tmp_path / 'run')
  assert len(list((tmp_path / 'hashes').iterdir())) == 1


def test_copies_of_a_placeholder_are_a_row_each(root, tmp_path):
  black = cv2.imencode('.png', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
  shutil.copytree(root, tmp_path / 'images')
  for part, count in (('train', 3), ('test', 4), ('source', 5)):
    for i in range(count):
      write(tmp_path / 'images', f'{part}/a/black-{i}{part}.png', black)
  c = settings(tmp_path / 'images')
  train, test, pool = opened(c)
  left = guard.withhold(c, train, test, pool, tmp_path / 'run')
  assert len(pool) - len(left) == len(LEAKS) + 5
  listed = rows(tmp_path / 'run' / 'guard' / 'quarantine.csv')
  many = [r['repeated'] for r in listed if 'black' in r['source_id']]
  assert many == ['4'] * 5
  found = guard.exposure(c, tmp_path / 'run', test, [])
  assert found['test_images_exposed'] == 2 + 4
  assert found['train_images_repeated'] == 1 + 3
  # 4 x 3 across, 3 among the training and 6 among the test images.
  assert found['target_pairs'] == 12 + 3 + 6
  assert found['target_pairs_across_train_and_test'] == 12
  inside = rows(tmp_path / 'run' / 'guard' / 'target_repeats.csv')
  many = [int(r['repeated']) for r in inside]
  assert many == [3] * 4 + [1, 2] + [1, 2, 3]


def test_training_repeats_are_withheld_on_demand(root, tmp_path):
  c = settings(root, **{'guard.withhold_train': True})
  train, test, pool = opened(c)
  left = guard.withhold(c, train, test, pool, tmp_path)
  gone = {*pool.ids} - {*left.ids}
  assert gone == {*LEAKS, 'main:b/training.png'}


@pytest.fixture
def finished(root, tmp_path):
  c = settings(root)
  train, test, pool = opened(c)
  left = guard.withhold(c, train, test, pool, tmp_path / 'run')
  return c, train, test, pool, left, tmp_path / 'run'


def _refuse(*args, **settings):
  raise AssertionError('looked again')


def test_a_finished_check_is_not_made_again(finished, tmp_path, monkeypatch):
  c, train, test, pool, left, run = finished
  monkeypatch.setattr(repeats, 'find', _refuse)
  again = guard.withhold(c, train, test, pool, run)
  assert again.digest == left.digest
  other = guard.withhold(c, train, test, pool, tmp_path / 'b', donors=[run])
  assert other.digest == left.digest
  guard.require(tmp_path / 'b', train, test, other)
  assert guard.remaining(pool, run).digest == left.digest
  assert guard.remaining(pool, tmp_path / 'nothing') is pool


def test_the_check_of_other_images_is_refused_not_used(finished, tmp_path):
  c, train, test, pool, _, run = finished
  fewer = test.subset(np.arange(1, len(test)))
  with pytest.raises(UserError, match='check of other images'):
    guard.withhold(c, train, fewer, pool, run)
  # As a donor it is passed over.
  left = guard.withhold(c, train, fewer, pool, tmp_path / 'b', donors=[run])
  assert sorted({*pool.ids} - {*left.ids}) == LEAKS[1:]


def test_training_needs_a_record_of_exactly_these_sets(finished, tmp_path):
  _, train, test, pool, left, run = finished
  guard.require(run, train, test, left)
  guard.require(tmp_path / 'nothing', train, test, None)
  for others in (
    (train, test, pool),
    (train, test.subset(np.arange(3)), left),
    (train.subset(np.arange(3)), test, left),
  ):
    with pytest.raises(UserError, match='is of others'):
      guard.require(run, *others)
  shutil.rmtree(run / 'guard')
  with pytest.raises(UserError, match='is missing') as e:
    guard.require(run, train, test, left)
  assert '\n' not in str(e.value)


def test_accuracy_with_and_without_exposed_images(finished):
  c, _, test, _, _, run = finished
  # Right for the exposed ones (4 of class a, 7 of class b) and one more.
  right = np.isin(test.ids, [f'target:test/{n}.png' for n in (
    'a/test-4', 'b/test-7', 'a/test-6')])  # fmt: skip
  label = np.where(right, test.labels, 1 - test.labels)
  posterior = np.eye(2)[label]
  found = guard.exposure(c, run, test, [posterior, 1 - posterior])
  assert found['test_images_exposed'] == 2
  # Classes a and b have three images each, and two without the exposed.
  assert found['mean_class_accuracy'] == [
    pytest.approx((2 / 3 + 1 / 3) / 2),
    pytest.approx((1 / 3 + 2 / 3) / 2),
  ]
  assert found['mean_class_accuracy_without_exposed'] == [
    pytest.approx((1 / 2 + 0) / 2),
    pytest.approx((1 / 2 + 1) / 2),
  ]


def test_a_source_of_test_images_alone_is_refused(root, tmp_path, capsys):
  c = settings(root, **{'source.main.dir': str(root / 'test')})
  train, test, pool = opened(c)
  for _ in range(2):  # From the record, too.
    with pytest.raises(UserError) as refused:
      guard.withhold(c, train, test, pool, tmp_path)
    assert str(refused.value) == (
      f'All 6 source images repeat test images, see {tmp_path}/guard/'
      'quarantine.csv: give another source.'
    )
  assert len(rows(tmp_path / 'guard' / 'quarantine.csv')) == 6
  # Nothing but the refusal says what is wrong.
  assert 'are withheld' not in capsys.readouterr().out
  c.guard.withhold_train = True
  with pytest.raises(UserError, match=r'or training images, .*repeats\.csv'):
    guard.withhold(c, train, test, pool, tmp_path / 'b')


def test_switched_off_it_says_so(root, tmp_path, monkeypatch):
  monkeypatch.setattr(repeats, 'find', _refuse)
  c = settings(root, **{'guard.enabled': False})
  train, test, pool = opened(c)
  left = guard.withhold(c, train, test, pool, tmp_path)
  assert left is pool
  # The record may be another arm's, of other weights.
  c.model.weights = 'x.npz'
  guard.require(tmp_path, train, test, left)
  found = guard.exposure(c, tmp_path, test, [])
  assert not found['checked']
  assert found['weights_not_checked'] == ['x.npz']


def test_without_test_images_training_images_are_looked_for(root, tmp_path):
  c = settings(root)
  train, test, pool = opened(c)
  nothing = test.subset(np.arange(0))
  left = guard.withhold(c, train, nothing, pool, tmp_path)
  assert left is pool
  assert len(rows(tmp_path / 'guard' / 'repeats.csv')) == 1
  assert guard.exposure(c, tmp_path, nothing, [])['test_images'] == 0


def test_without_a_source_there_is_nothing_to_check(root, tmp_path):
  c = settings(root)
  train, test, _ = opened(c)
  assert guard.withhold(c, train, test, None, tmp_path) is None
  assert guard.exposure(c, tmp_path, test, []) == {}
  assert not any(tmp_path.iterdir())


def unread(dataset, name):
  """The set, one image of which is on a disk that fails."""

  def read(i):
    if dataset.ids[i] == name:
      raise OSError(116, 'Stale file handle')
    return dataset.read(i)

  return dataclasses.replace(dataset, read=read)


def test_a_test_image_that_cannot_be_read_for_now_is_not_passed_over(
  root, tmp_path
):
  _, test, _ = opened(settings(root))
  name = 'target:test/b/test-5.png'
  with pytest.raises(UserError, match=f'{name} cannot be read now .*Stale'):
    repeats.Target(unread(test, name), 2, 'hash')


def test_a_source_image_that_nobody_could_look_at_is_withheld(root, tmp_path):
  c = settings(root)
  train, test, pool = opened(c)
  name = 'main:b/source-11.png'
  # Of a table that holds its hash it would not have to be read.
  c.guard.cache = str(tmp_path / 'hashes')
  with pytest.raises(UserError, match='1 of 33 source images cannot be read'):
    guard.withhold(c, train, test, unread(pool, name), tmp_path)
  assert not (tmp_path / 'guard').exists()
  c.max_bad_fraction = 0.05
  left = guard.withhold(c, train, test, unread(pool, name), tmp_path)
  assert sorted({*pool.ids} - {*left.ids}) == sorted([*LEAKS, name])
  guard.require(tmp_path, train, test, left)
  counts = guard.exposure(c, tmp_path, test, [])
  assert counts['source_images_withheld'] == len(LEAKS)
  assert counts['source_images_unread'] == 1


def test_test_images_too_small_for_their_look_are_counted(tmp_path):
  grey = iter(range(9))
  for part, count in (('train', 2), ('test', 3), ('source', 4)):
    for i in range(count):
      image = np.full((9, 9, 3), next(grey), np.uint8)
      write(tmp_path, f'{part}/a/{i}.png', cv2.imencode('.png', image)[1])
  c = settings(tmp_path)
  train, test, pool = opened(c)
  guard.withhold(c, train, test, pool, tmp_path / 'run')
  found = guard.exposure(c, tmp_path / 'run', test, [])
  assert found['test_images_without_look'] == 3
