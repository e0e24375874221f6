import numpy as np
import pytest

from sjft_jax.ops import topk


def test_smallest_equals_a_stable_sort_with_many_ties():
  rng = np.random.default_rng(0)
  distance = rng.integers(0, 6, (5, 40)).astype(np.float32)
  order = np.argsort(distance, axis=1, kind='stable')[:, :11]
  found, index = topk.smallest(distance, 11)
  np.testing.assert_array_equal(index, order)
  np.testing.assert_array_equal(
    found, np.take_along_axis(distance, order, axis=1)
  )


def test_more_than_there_are_is_refused():
  with pytest.raises(ValueError, match='At most 3'):
    topk.smallest(np.zeros((2, 3), np.float32), 4)


@pytest.mark.parametrize('block', [1, 3, 7, 40])
def test_blocks_merge_to_one_stable_sort(block):
  rng = np.random.default_rng(1)
  distance = rng.integers(0, 6, (4, 40)).astype(np.float64)
  k = 9
  table = np.full((4, k), np.inf), np.full((4, k), -1)
  for start in range(0, 40, block):
    part = distance[:, start : start + block]
    index = np.broadcast_to(start + np.arange(part.shape[1]), part.shape)
    table = topk.merge(*table, part, index, k)
  order = np.argsort(distance, axis=1, kind='stable')[:, :k]
  np.testing.assert_array_equal(table[1], order)
  np.testing.assert_array_equal(
    table[0], np.take_along_axis(distance, order, axis=1)
  )
