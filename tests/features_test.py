import numpy as np
import pytest

from sjft_jax import features
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError


def dataset(count):
  return Dataset(
    name='x',
    classes=('c',),
    ids=np.array([f'x:{i}' for i in range(count)]),
    labels=np.zeros(count, np.int32),
    sizes=np.zeros(count, np.int64),
    read=lambda i: b'',
  )


def describer(feature_nd, block, bad=()):
  """Blocks of given features; the bad ones are left out."""

  def describe(images):
    assert len(images) == len(feature_nd)
    for start in range(0, len(feature_nd), block):
      index = np.arange(start, min(start + block, len(feature_nd)))
      good = np.array([i for i in index if i not in bad], int)
      why = {int(i): 'broken' for i in index if i in bad}
      yield good, feature_nd[good], why

  return describe


@pytest.mark.parametrize('block', [1, 7, 64])
@pytest.mark.parametrize('shard', [1, 50, 4096])
def test_neighbours_are_those_of_a_stable_sort(block, shard, monkeypatch):
  monkeypatch.setattr(features, '_SHARD', shard)
  rng = np.random.default_rng(0)
  # Coarse features: many ties, and images that are the same.
  target_qd = rng.integers(1, 3, (9, 4)).astype(np.float32)
  source_sd = rng.integers(1, 3, (120, 4)).astype(np.float32)
  bad = {3, 50}

  def describe(images):
    if len(images) == 9:
      return describer(target_qd, block)(images)
    return describer(source_sd, block, bad)(images)

  table, unreadable = features.nearest(describe, dataset(9), dataset(120), 30)
  assert unreadable == {'x:3': 'broken', 'x:50': 'broken'}
  unit_qd, unit_sd = (
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (target_qd, source_sd)
  )
  distance_qs = ((unit_qd[:, None] - unit_sd[None]) ** 2).sum(axis=-1)
  distance_qs[:, sorted(bad)] = np.inf
  # Equal features are equally far, to the last bit.
  expected = np.argsort(np.round(distance_qs, 6), axis=1, kind='stable')[:, :30]
  np.testing.assert_array_equal(table.index_qk, expected)
  np.testing.assert_allclose(
    table.distance_qk,
    np.take_along_axis(distance_qs, expected, axis=1),
    atol=1e-3,
  )


def outage(lost, times):
  """`describe` of sets of 9 and of 120, of which some cannot be read yet."""
  feature_nd = np.random.default_rng(0).normal(size=(129, 4))
  left = dict.fromkeys(lost, times)

  def describe(images):
    number_n = np.array([int(name.removeprefix('x:')) for name in images.ids])
    bad = {}
    for at, i in enumerate(number_n.tolist()):
      if len(images) != 9 and left.get(i, 0):
        left[i] -= 1
        bad[at] = 'cannot be read now: stale'
    good = np.array([at for at in range(len(images)) if at not in bad], int)
    first = 120 if len(images) == 9 else 0
    yield good, feature_nd[first + number_n[good]], bad

  return describe


def test_a_few_images_that_cannot_be_read_are_asked_for_once_more():
  sets = dataset(9), dataset(120)
  expected, _ = features.nearest(outage((), 0), *sets, 30)
  for times, left_out in ((1, []), (2, ['x:3', 'x:50'])):
    table, bad = features.nearest(outage((50, 3), times), *sets, 30, 0.02)
    assert list(bad) == left_out
    same = (table.index_qk == expected.index_qk).all()
    there = np.isin([3, 50], table.index_qk).all()
    assert same == there == (times == 1)


def test_an_outage_is_refused():
  with pytest.raises(UserError, match=r'3 or more of 120 .* x:3 among them'):
    features.nearest(outage((3, 50, 60), 1), dataset(9), dataset(120), 30, 0.02)


@pytest.mark.parametrize('number', [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(number):
  feature_nd = np.ones((5, 4))
  feature_nd[3, 1] = number
  with pytest.raises(UserError, match=r'finite .* Look at model\.weights'):
    features.nearest(describer(feature_nd, 2), dataset(5), dataset(5), 2)


def test_a_target_image_that_is_lost_is_refused():
  describe = describer(np.ones((5, 4)), 2, bad={3})
  with pytest.raises(UserError, match='target image cannot be read any more'):
    features.nearest(describe, dataset(5), dataset(5), 2)


def test_length_is_of_no_consequence_and_nothing_is_far_from_nothing():
  feature_nd = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
  whole = features.whole(feature_nd)
  np.testing.assert_array_equal(whole[0], whole[1])
  np.testing.assert_array_equal(whole[0], np.rint([0.6 * 4096, 0.8 * 4096]))
  np.testing.assert_array_equal(whole[2], [0, 0])


def test_sums_of_products_are_exact():
  rng = np.random.default_rng(1)
  whole = features.whole(rng.normal(size=(50, 2048)))
  exact = whole.astype(np.int64) @ whole.astype(np.int64).T
  np.testing.assert_array_equal(whole @ whole.T, exact.astype(np.float64))
