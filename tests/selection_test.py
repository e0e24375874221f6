import numpy as np
import pytest

from sjft_jax import selection
from sjft_jax.errors import UserError

# Three target images, four neighbours each; the last row ends early.
INDEX = np.array([[5, 2, 9, 0], [2, 5, 7, 1], [9, 3, -1, -1]])
READABLE = np.delete(np.arange(12), 4)


def lists(candidates):
  return [
    candidates.index[a:b].tolist()
    for a, b in zip(candidates.start, candidates.stop, strict=True)
  ]


def test_neighbours_are_the_nearest_k_of_every_image():
  drawn = selection.neighbours(INDEX, np.array([1, 3, 4]), READABLE, 0)
  assert lists(drawn) == [[5], [2, 5, 7], [9, 3]]
  assert selection.selected(drawn).tolist() == [2, 3, 5, 7, 9]


def test_random_takes_as_many_images_and_keeps_them_when_k_grows():
  small = selection.random(INDEX, np.array([1, 1, 1]), READABLE, 3)
  large = selection.random(INDEX, np.array([4, 4, 2]), READABLE, 3)
  first, second = set(lists(small)[0]), set(lists(large)[0])
  assert len(first) == 3  # 5, 2 and 9 for the neighbours
  assert len(second) == 7
  assert first < second <= set(READABLE.tolist())
  assert lists(large)[0] == lists(large)[2]
  other = selection.random(INDEX, np.array([4, 4, 2]), READABLE, 4)
  assert set(lists(other)[0]) != second


def test_everything_is_the_readable_source():
  drawn = selection.everything(None, np.ones(3, int), READABLE, 0)
  np.testing.assert_array_equal(selection.selected(drawn), READABLE)
  assert len(lists(drawn)) == 3


@pytest.mark.parametrize('seed', [0, 1])
def test_random_images_are_uniform(seed):
  hits = np.zeros(12)
  for s in range(400):
    drawn = selection.random(INDEX, np.array([1, 1, 1]), READABLE, (seed, s))
    hits[selection.selected(drawn)] += 1
  assert hits[4] == 0
  expected = 400 * 3 / 11
  assert (np.abs(hits[READABLE] - expected) < 4 * expected**0.5).all()


# Classes of the twelve source images.
LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3])
IDS = np.array(['t:a', 't:b', 't:c'])


def test_classes_with_too_few_selected_images_are_dropped():
  """By hand: 5 2 9, 2 5 7, 9 3 have labels 2 1 3, 1 2 0, 3 1."""
  drawn = selection.neighbours(INDEX, np.array([3, 3, 2]), READABLE, 0)
  kept = selection.common(drawn, LABELS, 2, IDS)
  assert lists(kept) == [[2], [2], [3]]
  assert selection.common(drawn, LABELS, 1, IDS) is drawn
  shared = selection.everything(None, np.ones(3, int), READABLE, 0)
  kept = selection.common(shared, LABELS, 4, IDS)
  assert lists(kept) == [[8, 9, 10, 11]] * 3


def test_a_target_image_left_without_neighbours_is_named():
  """By hand: 5, 2 5, 9 3 have labels 2, 1 2, 3 1; only 1 occurs twice."""
  drawn = selection.neighbours(INDEX, np.array([1, 2, 2]), READABLE, 0)
  with pytest.raises(UserError, match=r't:a .*least_per_class') as caught:
    selection.common(drawn, LABELS, 2, IDS)
  assert '1 target image' in str(caught.value)


def test_a_row_without_readable_neighbours_is_named_without_the_option():
  none = np.array([[5, 2], [-1, -1], [9, 3]])
  drawn = selection.neighbours(none, np.array([2, 2, 2]), READABLE, 0)
  with pytest.raises(UserError, match='needs a neighbour; t:b has none'):
    selection.common(drawn, LABELS, 1, IDS)
