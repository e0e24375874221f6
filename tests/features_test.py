import numpy as np
import pytest

from sjft_jax import features
from sjft_jax.data.datasets import Dataset
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
