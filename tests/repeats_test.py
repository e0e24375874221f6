import dataclasses

import cv2
import numpy as np
import pytest

from sjft_jax import repeats
from sjft_jax.data import packaged, preprocess
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError


def dataset(files, names, name='main'):
  return Dataset(
    name=name,
    classes=('a',),
    ids=np.array([f'{name}:{n}' for n in names]),
    labels=np.zeros(len(files), np.int32),
    sizes=np.array([len(file) for file in files]),
    read=files.__getitem__,
  )


def test_a_stem_is_the_files_not_the_sets():
  assert repeats.stem('imagenet:n02_7.JPEG') == 'n02_7'
  assert repeats.stem('target:test/Images/n02_7.jpg') == 'n02_7'
  assert repeats.stem('n02_7.jpg') == 'n02_7'


def jpeg(image):
  return cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()


@pytest.fixture(scope='module')
def files():
  """Detailed patches of photographs, PNG files."""
  images = packaged.load('photographs')
  index = [
    i
    for i in range(0, len(images.files), 3)
    if preprocess.decode(images.files[i]).std() > 30
  ]
  return [images.files[i] for i in index[:60]]


def find(source, target, cache, **changes):
  settings = {'screen': 0.7, 'confirm': 0.6, 'cache': cache, 'threads': 2}
  return repeats.find(
    source,
    0,
    len(source),
    repeats.Target(target, 2, 'target'),
    **settings | changes,
  )


def test_bytes_and_pictures_are_found_and_nothing_else(files, tmp_path):
  target = dataset(files[:20], [f't{i}.png' for i in range(20)], 'target')
  mirrored = jpeg(preprocess.decode(files[3])[:, ::-1])
  cropped = jpeg(preprocess.decode(files[4])[:44, 3:])
  content = [*files[20:], files[2], mirrored, cropped, b'no image']
  source = dataset(content, [f's{i}.png' for i in range(len(content))])
  found, counts = find(source, target, tmp_path)
  got = {(r.source, r.target): r.tests for r in found}
  first = len(files) - 20
  assert got == {
    (first, 2): ('bytes', 'picture'),
    (first + 1, 3): ('picture',),
    (first + 2, 4): ('picture',),
  }
  assert all(0.6 < r.similarity <= 1.0001 for r in found)
  assert counts['without_fingerprint'] == 1
  assert counts['equal_names'] == 0


def test_one_source_image_may_repeat_several_target_images(files, tmp_path):
  twice = jpeg(preprocess.decode(files[0]))
  target = dataset([files[0], files[1], twice], 'abc', 'target')
  found, _ = find(dataset([files[0]], ['x']), target, tmp_path)
  assert [(r.source, r.target) for r in found] == [(0, 0), (0, 2)]
  assert [r.tests for r in found] == [('bytes', 'picture'), ('picture',)]


def test_of_many_copies_of_one_file_one_pair_is_compared(
  files, tmp_path, monkeypatch
):
  # The same placeholder, and beside it one that only looks so.
  copies, look = [files[0]] * 5, jpeg(preprocess.decode(files[0]))
  target = dataset([*copies, look, files[1]], [f't{i}' for i in range(7)], 't')
  source = dataset(
    [*copies, files[2], look], [*(f's{i}' for i in range(6)), 't3']
  )
  compared, compare = [], repeats.fingerprints.compare

  def counted(*args, **kwargs):
    compared.append(args)
    return compare(*args, **kwargs)

  monkeypatch.setattr(repeats.fingerprints, 'compare', counted)
  found, counts = find(source, target, tmp_path)
  tests = {(r.source, r.target): r.tests for r in found}
  both = ('bytes', 'picture')
  expected = {(i, t): both for i in range(5) for t in range(5)}
  expected |= {(i, 5): ('picture',) for i in range(5)}
  expected |= {(6, t): ('picture',) for t in range(5)} | {(6, 5): both}
  # Of a name, too: it is of one image, not of its copies.
  expected[6, 3] = ('name', 'picture')
  assert tests == expected
  assert all(0.9 < r.similarity <= 1.0001 for r in found)
  # Two files on either side, and the pair of equal names.
  assert len(compared) - counts['equal_names_compared'] <= 4
  assert counts['pairs_compared'] == len(compared) - 1
  assert counts['without_fingerprint'] == 0


def small(file):
  """Too changed for the fingerprint: a third of the picture is gone."""
  return jpeg(preprocess.decode(file)[:, 16:])


@pytest.mark.parametrize('same', [True, False])
def test_names_count_where_they_name_pictures(files, tmp_path, same):
  names = [f'n0{i}_{i}.JPEG' for i in range(8)]
  target = dataset(files[:8], [f'x/{n.lower()}' for n in names], 'target')
  content = files[:7] if same else files[8:15]
  source = dataset([*content, small(files[7])], [f'y/{n}' for n in names])
  found, counts = find(source, target, tmp_path)
  assert counts['equal_names'] == counts['equal_names_compared'] == 8
  by_name = {(r.source, r.target) for r in found if 'name' in r.tests}
  assert by_name == ({(i, i) for i in range(8)} if same else set())
  if same:
    assert found[7].tests == ('name',)
    assert found[7].similarity is None


def test_a_name_that_comes_twice_names_nothing(files, tmp_path):
  target = dataset(files[:2], ['a/1.png', 'b/2.png'], 'target')
  source = dataset(files[2:5], ['a/1.png', 'b/1.png', 'a/3.png'])
  _, counts = find(source, target, tmp_path)
  assert counts['equal_names'] == 0


def test_tiny_pictures_are_compared_by_bytes_only(tmp_path):
  digits = packaged.load('digits')
  target = dataset(digits.files[:30], map(str, range(30)), 'target')
  source = dataset(digits.files[20:60], map(str, range(100, 140)))
  found, counts = find(source, target, tmp_path)
  assert {(r.source, r.target) for r in found} >= {
    (i, i + 20) for i in range(10)
  }
  assert {r.tests for r in found} == {('bytes',)}
  assert counts['without_fingerprint'] == 40


def test_the_blocks_of_the_screen_change_nothing(files, tmp_path, monkeypatch):
  target = dataset(files[:9], [f't{i}' for i in range(9)], 'target')
  source = dataset(files[5:], [f's{i}' for i in range(len(files) - 5)])
  whole, _ = find(source, target, tmp_path)
  assert len(whole) == 4
  monkeypatch.setattr(repeats, '_SOURCES', 7)
  monkeypatch.setattr(repeats, '_TARGETS', 4)
  blocks, _ = find(source, target, tmp_path)
  for a, b in zip(whole, blocks, strict=True):
    assert (a.source, a.target, a.tests) == (b.source, b.target, b.tests)
    assert a.similarity == pytest.approx(b.similarity)


def test_what_could_be_read_when_it_was_hashed_is_not_passed_over(
  files, tmp_path
):
  source, target = (
    dataset(files, range(60)),
    dataset(files[:3], 'abc', 'target'),
  )
  find(source, target, tmp_path)
  reads = []

  def stale(i):
    # Hashes are kept; those that are probed are read once.
    reads.append(i)
    if reads.count(i) > 1 or i == 1:
      raise OSError(116, 'Stale file handle')
    return files[i]

  with pytest.raises(UserError, match='cannot be read now'):
    find(dataclasses.replace(source, read=stale), target, tmp_path)


def test_unreadable_images_are_passed_over(files, tmp_path):
  def read(i):
    if i == 1:
      raise FileNotFoundError(2, 'No such file')
    return files[i]

  source = dataclasses.replace(dataset(files[:3], 'abc'), read=read)
  target = dataclasses.replace(dataset(files[:3], 'xyz'), read=read)
  found, counts = find(source, target, tmp_path)
  assert [(r.source, r.target) for r in found] == [(0, 0), (2, 2)]
  assert counts['without_fingerprint'] == 1
