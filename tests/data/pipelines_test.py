import dataclasses
import errno
import itertools
import time

import cv2
import numpy as np
import pytest
from scipy import stats

from sjft_jax import errors
from sjft_jax.data import pipelines
from sjft_jax.data.dataset import Dataset

SIDE = 12
DAMAGED = b'no image'


def _image(i):
  """Red and green tell the place, blue the image."""
  y, x = np.indices((SIDE, SIDE), np.uint8)
  return np.stack([x, y, np.full_like(x, i)], -1)


def _dataset(name, count, bad=()):
  files = [
    cv2.imencode('.png', _image(i)[..., ::-1])[1].tobytes()
    for i in range(count)
  ]

  def read(i):
    if i in bad:
      return DAMAGED
    return files[i]

  return Dataset(
    name=name,
    classes=('even', 'odd'),
    ids=np.array([f'{name}:{i}' for i in range(count)]),
    labels=np.arange(count, dtype=np.int32) % 2,
    sizes=np.array([len(file) for file in files]),
    read=read,
  )


def _candidates(targets, sources, count=4):
  """Target i may draw the sources i, i + 1, ... , around the end."""
  lists = (np.arange(targets)[:, None] + np.arange(count)) % sources
  start = np.arange(targets, dtype=np.int64) * count
  return pipelines.Candidates(
    index=lists.reshape(-1).astype(np.int32), start=start, stop=start + count
  )


def _joint(target, source, candidates, **changes):
  settings = {
    'seed': 1,
    'steps': 6,
    'micro_batches': 2,
    'target_batch': 5 if target else 0,
    'source_batch': 5 if source else 0,
    'resize': SIDE,
    'crop': 8,
    'mirror': True,
    'threads': 2,
  }
  return list(pipelines.joint(target, source, candidates, **settings | changes))


def _assert_same(first, second):
  assert len(first) == len(second) > 0
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def _all(batches, key):
  return np.concatenate([batch[key].reshape(-1) for batch in batches])


# --- Sweeps -------------------------------------------------------------------


@pytest.mark.parametrize('threads', [1, 4])
@pytest.mark.parametrize('batch', [7, 50, 100])
def test_a_sweep_yields_every_image_once_in_order(threads, batch):
  count = 75
  blocks = list(
    pipelines.sweep(
      _dataset('s', count), resize=SIDE, crop=8, batch=batch, threads=threads
    )
  )
  assert len(blocks) == -(-count // batch)
  assert all(block.image.shape == (batch, 8, 8, 3) for block in blocks)
  index = np.concatenate([block.index for block in blocks])
  valid = np.concatenate([block.valid for block in blocks])
  image = np.concatenate([block.image for block in blocks])
  np.testing.assert_array_equal(index[:count], np.arange(count))
  assert (index[count:] == -1).all()
  np.testing.assert_array_equal(valid, index >= 0)
  for i in range(count):
    np.testing.assert_array_equal(image[i], _image(i)[2:10, 2:10])
  assert not image[count:].any()


def test_a_function_is_applied_to_a_part_in_order():
  found = pipelines.each(_dataset('s', 20), lambda i: i, 2, start=7, stop=13)
  assert list(found) == list(range(7, 13))
  assert not list(pipelines.each(_dataset('s', 20), int, 1, start=5, stop=5))


def test_no_images_make_no_block():
  nothing = _dataset('s', 20).subset(np.arange(0))
  assert not list(
    pipelines.sweep(nothing, resize=8, crop=8, batch=4, threads=1)
  )


def _with_trouble(count=40):
  """Image 3 is no image, image 33 is gone, image 39 is cut short."""
  whole = _dataset('s', count)

  def read(i):
    if i == 3:
      return DAMAGED
    if i == 33:
      raise FileNotFoundError(2, 'No such file or directory')
    return whole.read(i)[:-9] if i == 39 else whole.read(i)

  fields = {**vars(whole), 'read': read}
  return Dataset(**fields)


TROUBLE = {3: 'not a', 33: 'No such file', 39: 'truncated PNG'}


def test_bad_images_are_masked_and_listed():
  blocks = list(
    pipelines.sweep(_with_trouble(), resize=8, crop=8, batch=16, threads=2)
  )
  bad = dict(itertools.chain.from_iterable(block.bad for block in blocks))
  assert bad.keys() == TROUBLE.keys()
  assert all(TROUBLE[i] in bad[i] for i in bad)
  for block in blocks:
    good = (block.index >= 0) & ~np.isin(block.index, list(bad))
    np.testing.assert_array_equal(block.valid, good)
    assert not block.image[~block.valid].any()
    np.testing.assert_array_equal(block.image[good, 0, 0, 2], block.index[good])


def test_a_sweep_of_several_views_of_an_image():
  def cut(image, crop):
    return np.stack([image[:crop, :crop], image[-crop:, -crop:]])

  (block,) = pipelines.sweep(
    _dataset('s', 3), resize=SIDE, crop=5, batch=4, threads=1, cut=cut
  )
  assert block.image.shape == (4, 2, 5, 5, 3)
  for i in range(3):
    np.testing.assert_array_equal(block.image[i], cut(_image(i), 5))
  assert not block.image[3].any()


def test_reduced_decoding_is_used_where_it_is_enough_and_nearly_the_same():
  y, x = np.indices((96, 128))
  smooth = np.stack([x, y, 255 - x], -1).astype(np.uint8)
  file = cv2.imencode('.jpg', smooth)[1].tobytes()
  dataset = _dataset('t', 1)
  dataset = dataclasses.replace(dataset, read=lambda i: file)

  def swept(resize, reduced):
    (block,) = pipelines.sweep(
      dataset, resize=resize, crop=40, batch=1, threads=1, reduced=reduced
    )
    return block.image.astype(int)

  assert 0 < np.abs(swept(48, True) - swept(48, False)).max() <= 4
  # Half of the height would be one pixel too little.
  np.testing.assert_array_equal(swept(49, True), swept(49, False))


def test_find_bad_agrees_with_a_sweep():
  found = list(pipelines.find_bad(_with_trouble(), threads=2))
  assert [i for i, _ in found] == list(range(40))
  assert {i for i, reason in found if reason} == TROUBLE.keys()


def test_a_sweep_reads_a_bounded_number_of_images_ahead():
  read = []
  whole = _dataset('s', 200)
  fields = {
    **vars(whole),
    'read': lambda i: read.append(i) or whole.read(i % 200),
  }
  many = Dataset(**fields)
  blocks = pipelines.sweep(
    many.subset(np.arange(5000) % 200), resize=8, crop=8, batch=32, threads=2
  )
  next(blocks)
  time.sleep(0.3)  # Time enough to read all of them.
  blocks.close()
  assert 32 <= len(read) <= 500


# --- Joint batches ------------------------------------------------------------


def test_shapes_types_and_labels():
  target, source = _dataset('t', 20), _dataset('s', 30)
  for batch in _joint(target, source, _candidates(20, 30)):
    for half in ('target', 'source'):
      image = batch[f'{half}_image']
      index = batch[f'{half}_index']
      assert image.shape == (2, 5, 8, 8, 3)
      assert image.dtype == np.uint8
      assert index.shape == batch[f'{half}_label'].shape == (2, 5)
      assert index.dtype == np.int64
      assert batch[f'{half}_label'].dtype == np.int32
      np.testing.assert_array_equal(batch[f'{half}_label'], index % 2)
      expected = np.broadcast_to(index[..., None, None], image.shape[:-1])
      np.testing.assert_array_equal(image[..., 2], expected)


def test_the_threads_change_nothing():
  target, source = _dataset('t', 20), _dataset('s', 30, bad=(4, 9))
  runs = [
    _joint(target, source, _candidates(20, 30), threads=threads)
    for threads in (1, 4, 0)
  ]
  _assert_same(runs[0], runs[1])
  _assert_same(runs[0], runs[2])


@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('threads', [1, 4])
@pytest.mark.parametrize('halves', ['both', 'target', 'source'])
def test_the_parts_of_all_processes_are_the_whole(halves, processes, threads):
  target = None if halves == 'source' else _dataset('t', 7)
  source = None if halves == 'target' else _dataset('s', 30, bad=(4, 9))
  candidates = _candidates(7, 30) if halves == 'both' else None
  sizes = {
    'target_batch': 8 if target else 0,
    'source_batch': 8 if source else 0,
  }
  whole = _joint(target, source, candidates, **sizes)
  for first_step in (0, 3):
    parts = [
      _joint(
        target,
        source,
        candidates,
        process=process,
        processes=processes,
        threads=threads,
        first_step=first_step,
        **sizes,
      )
      for process in range(processes)
    ]
    joined = [
      {key: np.concatenate([p[key] for p in step], axis=1) for key in step[0]}
      for step in zip(*parts, strict=True)
    ]
    _assert_same(whole[first_step:], joined)


@pytest.mark.parametrize('first_step', [1, 4])
@pytest.mark.parametrize('halves', ['both', 'target', 'source'])
def test_a_later_first_step_gives_the_tail(first_step, halves):
  target = None if halves == 'source' else _dataset('t', 7)
  source = None if halves == 'target' else _dataset('s', 30)
  candidates = _candidates(7, 30) if halves == 'both' else None
  whole = _joint(target, source, candidates)
  tail = _joint(target, source, candidates, first_step=first_step)
  _assert_same(whole[first_step:], tail)


def test_seeds_differ_and_do_not_repeat_each_other_an_epoch_later():
  target = _dataset('t', 10)
  runs = [
    _all(_joint(target, None, None, seed=seed), 'target_index').reshape(-1, 10)
    for seed in (1, 2)
  ]
  assert len({tuple(epoch) for run in runs for epoch in run}) == 12


def test_every_target_image_comes_once_an_epoch():
  index = _all(_joint(_dataset('t', 12), None, None), 'target_index')
  assert len(index) == 60
  for epoch in index.reshape(-1, 12):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(12))


def test_a_target_image_comes_as_often_as_its_level():
  level = np.array([1, 3, 1, 2, 5])
  batches = _joint(_dataset('t', 5), None, None, level_q=level)
  index = _all(batches, 'target_index')
  assert len(index) == 60
  for epoch in index.reshape(-1, 12):
    np.testing.assert_array_equal(np.bincount(epoch), level)
  tail = _joint(_dataset('t', 5), None, None, level_q=level, first_step=2)
  _assert_same(batches[2:], tail)


def _many_labels(labels):
  fields = {**vars(_dataset('t', len(labels)))}
  fields |= {
    'labels': np.asarray(labels, np.int32),
    'classes': tuple(map(str, range(max(labels) + 1))),
  }
  return Dataset(**fields)


def test_no_label_comes_more_often_than_it_may():
  """Twelve images of label 0 and one each of four others."""
  target = _many_labels([0] * 12 + [1, 2, 3, 4])
  free = _joint(target, None, None, threads=1)
  capped = _joint(target, None, None, most_per_label=2, threads=4)
  for before, after in zip(free, capped, strict=True):
    for old, new in zip(
      before['target_index'], after['target_index'], strict=True
    ):
      count = np.bincount(target.labels[new], minlength=5)
      kept = old == new
      assert count.max() <= 2
      # Whatever is replaced was too much, and absent labels come first.
      assert (target.labels[old[~kept]] == 0).all()
      excess = max(np.bincount(target.labels[old])[0] - 2, 0)
      assert (~kept).sum() == excess
      assert (count > 0).sum() == min(5, len({*target.labels[old]}) + excess)
  tail = _joint(target, None, None, most_per_label=2, first_step=3)
  _assert_same(capped[3:], tail)


def test_a_replacement_draws_a_neighbour_of_its_own():
  target, source = _many_labels([0] * 6 + [1, 2, 3]), _dataset('s', 30)
  candidates = _candidates(9, 30)
  batches = _joint(target, source, candidates, most_per_label=2)
  for i, j in zip(
    _all(batches, 'target_index'), _all(batches, 'source_index'), strict=True
  ):
    assert j in candidates.index[candidates.start[i] : candidates.stop[i]]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'level_q': np.ones(4, int)}, 'A level of 1'),
    ({'level_q': np.zeros(5, int)}, 'A level of 1'),
    ({'most_per_label': 2}, 'Too few labels'),
  ],
)
def test_levels_and_labels_must_fit(changes, message):
  with pytest.raises(ValueError, match=message):
    _joint(_dataset('t', 5), None, None, **changes)


def test_each_source_image_is_a_candidate_of_its_target_image():
  candidates = _candidates(20, 30)
  batches = _joint(_dataset('t', 20), _dataset('s', 30), candidates, steps=20)
  target = _all(batches, 'target_index')
  source = _all(batches, 'source_index')
  for i, j in zip(target, source, strict=True):
    assert j in candidates.index[candidates.start[i] : candidates.stop[i]]


@pytest.mark.parametrize('bad', [(), (3,)])
def test_draws_are_uniform_over_the_good_candidates(bad):
  batches = _joint(
    _dataset('t', 2),
    _dataset('s', 6, bad),
    pipelines.Candidates(
      index=np.arange(6, dtype=np.int32),
      start=np.array([0, 2]),
      stop=np.array([4, 6]),
    ),
    steps=120,
  )
  target = _all(batches, 'target_index')
  source = _all(batches, 'source_index')
  for i, among in ((0, (0, 1, 2, 3)), (1, (2, 3, 4, 5))):
    drawn = source[target == i]
    good = [j for j in among if j not in bad]
    assert {*drawn} == {*good}
    count = [(drawn == j).sum() for j in good]
    assert stats.chisquare(count).pvalue > 0.01


def test_source_only_draws_from_the_whole_source():
  batches = _joint(None, _dataset('s', 10), None, steps=100)
  count = np.bincount(_all(batches, 'source_index'), minlength=10)
  assert stats.chisquare(count).pvalue > 0.01
  assert batches[0]['target_image'].shape == (2, 0, 8, 8, 3)
  assert batches[0]['target_label'].shape == (2, 0)


def test_crops_are_windows_at_every_place_and_half_are_mirrored():
  batches = _joint(_dataset('t', 5), None, None, steps=100)
  image = np.concatenate([b['target_image'] for b in batches]).reshape(
    -1, 8, 8, 3
  )
  image = image.astype(int)
  step_y = np.diff(image[..., 1], axis=1)
  step_x = np.diff(image[..., 0], axis=2)
  assert (step_y == 1).all()
  mirrored = step_x[:, 0, 0] == -1
  assert (step_x == np.where(mirrored, -1, 1)[:, None, None]).all()
  assert stats.binomtest(int(mirrored.sum()), len(mirrored)).pvalue > 0.01
  places = {*zip(image[:, 0, 0, 1], image.min(axis=(1, 2))[:, 0], strict=True)}
  assert places == {(y, x) for y in range(5) for x in range(5)}
  plain = _joint(_dataset('t', 5), None, None, mirror=False)
  assert all(
    (np.diff(b['target_image'][..., 0].astype(int)) == 1).all() for b in plain
  )


def test_a_bad_target_image_stops_the_run_by_name():
  with pytest.raises(errors.UserError, match=r'^t:2: not a .*restore it') as e:
    _joint(_dataset('t', 5, bad=(2,)), None, None)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('halves', ['both', 'source'])
def test_bad_candidates_only_stop_the_run(halves):
  source = _dataset('s', 30, bad=(3, 4, 5, 6))
  target = _dataset('t', 5) if halves == 'both' else None
  candidates = _candidates(5, 30) if target else None
  if target is None:
    source = source.subset(np.arange(3, 7))
  whose = 'source image for t:3;' if target else 'source image;'
  with pytest.raises(errors.UserError, match=rf'{whose} .* last s:[3-6]: not'):
    _joint(target, source, candidates)


@pytest.mark.parametrize('half', ['target', 'source'])
def test_batches_do_not_depend_on_what_a_disk_does(half):
  sets = {'target': _dataset('t', 5), 'source': _dataset('s', 30, bad=(4,))}
  whole = _joint(*sets.values(), _candidates(5, 30))
  read, stale = sets[half].read, [True]

  def away(i):
    if i == 3 and stale:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return read(i)

  sets[half] = dataclasses.replace(sets[half], read=away)
  name = f'{half[0]}:3'
  with pytest.raises(errors.UserError, match=f'{name}: cannot be read now'):
    _joint(*sets.values(), _candidates(5, 30))
  stale.clear()
  _assert_same(whole, _joint(*sets.values(), _candidates(5, 30)))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'source_batch': 4}, 'pair up'),
    ({'target_batch': 0, 'source_batch': 0}, 'needs images'),
    ({'processes': 2}, 'equal parts'),
    ({'process': 1}, 'equal parts'),
    ({'start': np.zeros(4, np.int64)}, 'One list per target'),
    ({'start': np.array([0, 4, 8, 12, 20])}, 'needs a candidate'),
    ({'index': np.full(20, 30, np.int32)}, 'source positions'),
  ],
)
def test_what_does_not_fit_is_refused_at_once(changes, message):
  lists = vars(_candidates(5, 30))
  lists |= {k: v for k, v in changes.items() if k in lists}
  sizes = {k: v for k, v in changes.items() if k not in lists}
  with pytest.raises(ValueError, match=message):
    _joint(
      _dataset('t', 5),
      _dataset('s', 30),
      pipelines.Candidates(**lists),
      **sizes,
    )
