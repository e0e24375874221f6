import dataclasses
import errno

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from sjft_jax import describe, mesh, reuse, streams
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError

SIZE = 16


def images(seed, count):
  rng = np.random.default_rng(seed)
  files = [
    cv2.imencode('.png', rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))[1]
    for _ in range(count)
  ]
  return Dataset(
    name='set',
    classes=('any',),
    ids=np.array([f'set:{i}' for i in range(count)]),
    labels=np.zeros(count, np.int32),
    sizes=np.full(count, 1),
    read=lambda i: files[i].tobytes(),
  )


@pytest.fixture(scope='module')
def case():
  """(source, fine describer, two targets' describers)."""
  c = ConfigDict(default.get_config().describe)
  c.resize = c.crop = SIZE
  bank = describe.load_bank(c)
  run_on = dict(mesh=mesh.make(), batch=8, threads=1)
  source = images(0, 20)
  fine = reuse.fit_fine(bank, source, bins=64, **run_on)
  targets = [
    describe.fit(bank, images(seed, 6), bins=8, **run_on) for seed in (1, 2)
  ]
  return source, fine, targets


def joined(stream):
  return np.concatenate([b.counts_nd for b in stream.blocks(0, 20, 8)])


def test_merged_counts_are_those_of_the_moved_edges(case, tmp_path):
  """Also of a second target, which reads no source image."""
  source, fine, targets = case
  expected = []
  for target in targets:
    moved = reuse.snap(target, fine)
    assert np.isin(moved.edges_cb, fine.edges_cb).all()
    expected.append((moved, joined(streams.Described(moved, source))))

  def kept(dataset):
    return streams.Cached(fine, dataset, tmp_path, 'key')

  moved, counts = expected[0]
  merged = reuse.Merged(kept(source), moved)
  np.testing.assert_array_equal(joined(merged), counts)
  (some,) = merged.again(np.array([3, 17]), 8)
  np.testing.assert_array_equal(some.counts_nd, counts[[3, 17]])
  silent = dataclasses.replace(source, read=None)
  moved, counts = expected[1]
  np.testing.assert_array_equal(
    joined(reuse.Merged(kept(silent), moved)), counts
  )


def test_images_that_are_passed_over_stay_so(case):
  source, fine, (target, _) = case
  part = streams.Within(streams.Described(fine, source), [2, 5, 6])
  merged = reuse.Merged(part, reuse.snap(target, fine))
  np.testing.assert_array_equal(merged.places(3, 20), [5, 6])


def test_edges_that_are_none_of_the_fine_ones_are_refused(case):
  source, fine, (target, _) = case
  with pytest.raises(UserError, match=r'fine bins of search\.cache'):
    reuse.Merged(streams.Described(fine, source), target)


def test_fine_bins_hold_equal_masses_of_the_source(case):
  source, fine, _ = case
  mass = joined(streams.Described(fine, source)).reshape(20, -1, 64).sum(0)
  # Every pixel of the sample is a pixel of the source: 20 x 256 / 64.
  np.testing.assert_allclose(mass, 80, atol=2)


def test_edges_move_to_the_nearest():
  fine = describe.Describer(
    bank=None,
    edges_cb=np.float32([[-2, 0, 0, 3, 8]]),
    lower_c=None,
    upper_c=None,
    mesh=None,
    batch=1,
    threads=1,
  )
  target = dataclasses.replace(
    fine, edges_cb=np.float32([[-9, -1.1, -1, 1.4, 1.6, 5.5, 99]])
  )
  moved = reuse.snap(target, fine).edges_cb
  np.testing.assert_array_equal(moved, [[-2, -2, -2, 0, 3, 3, 8]])


def test_images_that_cannot_be_read_again_make_a_block_of_none(case):
  source, fine, (target, _) = case

  def stale(i):
    raise OSError(errno.ESTALE, 'Stale file handle')

  gone = dataclasses.replace(source, read=stale)
  moved = reuse.snap(target, fine)
  merged = reuse.Merged(streams.Described(fine, gone), moved)
  (block,) = merged.again(np.array([3, 17]), 8)
  assert block.counts_nd.shape == (0, len(moved.weight_d))
  assert streams.passing(block.bad) == [3, 17]
