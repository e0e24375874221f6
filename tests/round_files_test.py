import numpy as np
import pytest

from sjft_jax import paths, round_files
from sjft_jax.data.dataset import Dataset


def dataset(name, labels):
  return Dataset(
    name='target',
    classes=('cat', 'a "dog",'),
    ids=np.array([f'target:{name}/{i}' for i in range(len(labels))]),
    labels=np.array(labels, np.int32),
    sizes=np.zeros(len(labels), np.int64),
    read=lambda i: b'',
  )


TARGET, TEST = dataset('train', [0, 1, 1]), dataset('test', [0, 0, 1, 1])
POSTERIOR_QC = np.array([[1, 0], [0.5, 0.5], [0.25, 0.75]], np.float32)
TEST_NC = np.array([[0.9, 0.1], [0, 1], [0, 1], [0.2, 0.8]], np.float32)


def write(directory):
  round_files.write(
    directory,
    POSTERIOR_QC,
    TEST_NC,
    np.array([3, 3, 6]),
    np.array([3, 5, 6]),
    TARGET,
    TEST,
  )


@pytest.mark.parametrize('root', ['', 's3://b/run'])
def test_a_round_comes_back(tmp_path, bucket, root):
  directory = round_files.directory(paths.path(root or tmp_path), 0)
  assert not round_files.finished(directory)
  write(directory)
  assert round_files.finished(directory)
  kept = round_files.posteriors(directory)
  for part, images, expected in (
    ('train', TARGET, POSTERIOR_QC),
    ('test', TEST, TEST_NC),
  ):
    np.testing.assert_array_equal(kept[f'{part}_id'], images.ids)
    np.testing.assert_array_equal(kept[f'{part}_label'], images.labels)
    np.testing.assert_array_equal(kept[f'{part}_probability'], expected)
    assert kept[f'{part}_probability'].dtype == np.float32
  # In another order, as of a target that was listed otherwise.
  turned = TARGET.subset([2, 0, 1])
  k_q, next_q, entropy_q = round_files.budget(directory, turned)
  assert (k_q.tolist(), next_q.tolist()) == ([6, 3, 3], [6, 3, 5])
  # -.25 log .25 - .75 log .75
  assert entropy_q.tolist() == pytest.approx([0.562335, 0, np.log(2)], abs=1e-6)
  classes, count_cc = round_files.confusion(directory)
  assert tuple(classes) == TARGET.classes
  assert count_cc.tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize('root', ['', 's3://b/run'])
def test_rounds_are_in_order_of_their_number(tmp_path, bucket, root):
  workdir = paths.path(root or tmp_path)
  assert round_files.directories(workdir) == []
  for m in (10, 0, 9):
    write(round_files.directory(workdir, m))
  found = round_files.directories(workdir)
  assert found == [round_files.directory(workdir, m) for m in (0, 9, 10)]
  assert [path.name for path in found] == ['0', '9', '10']


def test_a_round_whose_files_end_early_is_not_finished(tmp_path, monkeypatch):
  write_csv = round_files.files.write_csv

  def fail(path, *table):
    if path.name == 'confusion.csv':
      raise KeyboardInterrupt
    write_csv(path, *table)

  with monkeypatch.context() as patch:
    patch.setattr(round_files.files, 'write_csv', fail)
    with pytest.raises(KeyboardInterrupt):
      write(tmp_path)
  assert round_files.answered(tmp_path)
  assert not round_files.finished(tmp_path)
  assert round_files.confusion(tmp_path)[0] == []


def test_answers_of_the_test_images_alone(tmp_path):
  assert not round_files.answered(tmp_path)
  round_files.write_test(tmp_path, TEST_NC, TEST)
  assert round_files.answered(tmp_path)
  assert sorted(round_files.posteriors(tmp_path)) == [
    'test_id',
    'test_label',
    'test_probability',
  ]
