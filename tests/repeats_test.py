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
  assert repeats.stem('main:a/img_0.10.jpg') == 'img_0.10'


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
  got = {(r.source, *r.targets): r.tests for r in found}
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
  assert [(r.source, *r.targets) for r in found] == [(0, 0), (0, 2)]
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
  tests = {(r.source, r.targets): r.tests for r in found}
  five, both = tuple(range(5)), ('bytes', 'picture')
  expected = {(i, five): both for i in range(5)}
  expected |= {(i, (5,)): ('picture',) for i in range(5)}
  # What repeats one copy repeats all, by whichever name.
  expected |= {(6, five): ('name', 'picture'), (6, (5,)): both}
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
  by_name = {(r.source, *r.targets) for r in found if 'name' in r.tests}
  assert by_name == ({(i, i) for i in range(8)} if same else set())
  if same:
    assert found[7].tests == ('name',)
    assert found[7].similarity is None


def test_a_name_that_comes_twice_names_nothing(files, tmp_path):
  target = dataset(files[:2], ['a/1.png', 'b/2.png'], 'target')
  source = dataset(files[2:5], ['c/1.png', 'd/1.png', 'a/3.png'])
  _, counts = find(source, target, tmp_path)
  assert counts['equal_names'] == 0


@pytest.mark.parametrize('same', [True, False])
def test_equal_paths_count_though_every_class_has_these_names(
  files, tmp_path, same
):
  names = [f'{c}/img_{i}.{n}.png' for c in 'ab' for i in '01' for n in (10, 20)]
  target = dataset(files[:8], [f'test/{n}' for n in names], 'target')
  content = files[:7] if same else files[8:15]
  source = dataset([*content, small(files[7])], [n.upper() for n in names])
  found, counts = find(source, target, tmp_path)
  assert counts['equal_names'] == counts['equal_names_compared'] == 8
  by_name = {(r.source, *r.targets) for r in found if 'name' in r.tests}
  assert by_name == ({(i, i) for i in range(8)} if same else set())


def test_paths_that_name_nothing_do_not_spoil_stems(files, tmp_path):
  # Numbers in each class, by chance the same, and names that mean something.
  numbers, stems = [f'a/{i}.png' for i in range(6)], [f'n0{i}' for i in '12']
  target = dataset(
    files[:8], [*numbers, *(f'x/{n}.png' for n in stems)], 'target'
  )
  source = dataset(
    [*files[10:16], *files[6:8]], [*numbers, *(f'y/{n}.JPEG' for n in stems)]
  )
  found, counts = find(source, target, tmp_path)
  assert counts['equal_names'] == 8
  by_name = {(r.source, *r.targets) for r in found if 'name' in r.tests}
  assert by_name == {(6, 6), (7, 7)}


def test_copies_of_one_file_are_not_multiplied_out(tmp_path):
  black = cv2.imencode('.png', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
  target = dataset([black] * 500, [f't{i}' for i in range(500)], 'target')
  source = dataset([black] * 4000, [f's{i}' for i in range(4000)])
  found, _ = find(source, target, tmp_path)
  assert [r.source for r in found] == list(range(4000))
  assert {r.targets for r in found} == {tuple(range(500))}
  assert len({id(r.targets) for r in found}) == 1


def test_within_one_set_images_are_held_against_those_before(files):
  again = jpeg(preprocess.decode(files[0]))
  content = [files[0], files[1], files[0], again, files[0]]
  mine = repeats.Target(dataset(content, 'abcde'), 2, 'target')
  limits = {'screen': 0.7, 'confirm': 0.6, 'threads': 2}
  found = repeats.within(mine, mine, **limits)
  assert [(r.source, r.targets[: r.repeated], r.tests) for r in found] == [
    (2, (0,), ('bytes',)),
    (3, (0, 2), ('picture',)),
    (4, (0, 2), ('bytes',)),
    (4, (3,), ('picture',)),
  ]
  other = repeats.Target(dataset([again, files[1]], 'xy', 'other'), 2, 'target')
  found = repeats.within(other, mine, **limits)
  assert [(r.source, r.targets) for r in found] == [
    (0, (0, 2, 4)),
    (0, (3,)),
    (1, (1,)),
  ]


def test_tiny_pictures_are_compared_by_bytes_only(tmp_path):
  digits = packaged.load('digits')
  target = dataset(digits.files[:30], map(str, range(30)), 'target')
  source = dataset(digits.files[20:60], map(str, range(100, 140)))
  found, counts = find(source, target, tmp_path)
  assert {(r.source, *r.targets) for r in found} >= {
    (i, i + 20) for i in range(10)
  }
  assert {r.tests for r in found} == {('bytes',)}
  assert counts['without_fingerprint'] == 40


def test_strokes_of_others_are_no_repeats_and_copies_are(tmp_path):
  digits = packaged.load('mnist').files
  order = np.random.default_rng(0).permutation(len(digits))
  images = [preprocess.decode(digits[i]) for i in order[:5]]
  changed = [
    jpeg(images[0]),
    jpeg(images[1][:, ::-1]),
    jpeg(images[2][2:, :26]),
    jpeg(cv2.resize(images[3], (64, 64), interpolation=cv2.INTER_AREA)),
    jpeg(
      cv2.copyMakeBorder(
        images[4], 2, 3, 1, 2, cv2.BORDER_CONSTANT, None, [255] * 3
      )
    ),
  ]
  target = dataset(
    [digits[i] for i in order[:100]], [f't{i}' for i in range(100)], 'target'
  )
  source = dataset(
    [*changed, *(digits[i] for i in order[100:300])],
    [f's{i}' for i in range(205)],
  )
  found, _ = find(source, target, tmp_path, confirm=0.75)
  assert [(r.source, *r.targets) for r in found] == [(i, i) for i in range(5)]


def test_the_blocks_of_the_screen_change_nothing(files, tmp_path, monkeypatch):
  target = dataset(files[:9], [f't{i}' for i in range(9)], 'target')
  source = dataset(files[5:], [f's{i}' for i in range(len(files) - 5)])
  whole, _ = find(source, target, tmp_path)
  assert len(whole) == 4
  monkeypatch.setattr(repeats, '_SOURCES', 7)
  monkeypatch.setattr(repeats, '_TARGETS', 4)
  blocks, _ = find(source, target, tmp_path)
  for a, b in zip(whole, blocks, strict=True):
    assert (a.source, a.targets, a.tests) == (b.source, b.targets, b.tests)
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
  assert [(r.source, *r.targets) for r in found] == [(0, 0), (2, 2)]
  assert counts['without_fingerprint'] == 1
