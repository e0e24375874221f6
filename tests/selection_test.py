import numpy as np
import pytest

from sjft_jax import selection
from sjft_jax.errors import UserError

# Three target images, four neighbours each; the last row ends early.
INDEX = np.array([[5, 2, 9, 0], [2, 5, 7, 1], [9, 3, -1, -1]])
READABLE = np.delete(np.arange(12), 4)
# Classes of the twelve source images.
LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3])
IDS = np.array(['t:a', 't:b', 't:c'])


def found(index=INDEX, **changes):
  return selection.Found(
    **dict(
      index_qk=index,
      label_q=np.array([0, 0, 1]),
      label_n=LABELS,
      source_n=READABLE,
      images=0,
      seed=0,
    )
    | changes
  )


def lists(candidates):
  return [
    candidates.index[a:b].tolist()
    for a, b in zip(candidates.start, candidates.stop, strict=True)
  ]


def test_neighbours_are_the_nearest_k_of_every_image():
  drawn = selection.neighbours(found(), np.array([1, 3, 4]))
  assert lists(drawn) == [[5], [2, 5, 7], [9, 3]]
  assert selection.selected(drawn).tolist() == [2, 3, 5, 7, 9]


def test_random_takes_as_many_images_and_keeps_them_when_k_grows():
  small = selection.random(found(seed=3), np.array([1, 1, 1]))
  large = selection.random(found(seed=3), np.array([4, 4, 2]))
  first, second = set(lists(small)[0]), set(lists(large)[0])
  assert len(first) == 3  # 5, 2 and 9 for the neighbours
  assert len(second) == 7
  assert first < second <= set(READABLE.tolist())
  assert lists(large)[0] == lists(large)[2]
  other = selection.random(found(seed=4), np.array([4, 4, 2]))
  assert set(lists(other)[0]) != second


def test_everything_is_the_readable_source():
  drawn = selection.everything(found(None), np.ones(3, int))
  np.testing.assert_array_equal(selection.selected(drawn), READABLE)
  assert len(lists(drawn)) == 3


@pytest.mark.parametrize('seed', [0, 1])
def test_random_images_are_uniform(seed):
  hits = np.zeros(12)
  for s in range(400):
    drawn = selection.random(found(seed=(seed, s)), np.array([1, 1, 1]))
    hits[selection.selected(drawn)] += 1
  assert hits[4] == 0
  expected = 400 * 3 / 11
  assert (np.abs(hits[READABLE] - expected) < 4 * expected**0.5).all()


def test_classes_with_too_few_selected_images_are_dropped():
  """By hand: 5 2 9, 2 5 7, 9 3 have labels 2 1 3, 1 2 0, 3 1."""
  drawn = selection.neighbours(found(), np.array([3, 3, 2]))
  kept = selection.without_rare_classes(drawn, LABELS, 2, IDS)
  assert lists(kept) == [[2], [2], [3]]
  assert selection.without_rare_classes(drawn, LABELS, 1, IDS) is drawn
  shared = selection.everything(found(None), np.ones(3, int))
  kept = selection.without_rare_classes(shared, LABELS, 4, IDS)
  assert lists(kept) == [[8, 9, 10, 11]] * 3


def test_a_target_image_left_without_neighbours_is_named():
  """By hand: 5, 2 5, 9 3 have labels 2, 1 2, 3 1; only 1 occurs twice."""
  drawn = selection.neighbours(found(), np.array([1, 2, 2]))
  with pytest.raises(UserError, match=r't:a .*least_per_class') as caught:
    selection.without_rare_classes(drawn, LABELS, 2, IDS)
  assert '1 target image' in str(caught.value)


def test_a_row_without_readable_neighbours_is_named_without_the_option():
  none = np.array([[5, 2], [-1, -1], [9, 3]])
  drawn = selection.neighbours(found(none), np.array([2, 2, 2]))
  with pytest.raises(UserError, match='needs a neighbour; t:b has none'):
    selection.without_rare_classes(drawn, LABELS, 1, IDS)


def test_what_a_class_has_in_common_comes_first():
  """By hand: a and b both have 5 and 2 among three; 9 and 7 once, 9 third."""
  drawn = selection.labelled(found(), np.array([3, 3, 2]))
  # 5 and 2 were first of one list each, 7 and 9 third.
  assert lists(drawn) == [[2, 5, 7], [2, 5, 7], [9, 3]]
  drawn = selection.labelled(found(), np.array([1, 4, 1]))
  # a votes for 5; b for 2, 5, 7 and 1.
  assert lists(drawn) == [[5], [5, 2, 7, 1], [9]]


def test_a_class_of_one_image_keeps_its_neighbours():
  one_each = found(label_q=np.arange(3))
  budget_q = np.array([2, 3, 4])
  assert lists(selection.labelled(one_each, budget_q)) == lists(
    selection.neighbours(one_each, budget_q)
  )


def test_whole_classes_come_by_the_share_that_is_near():
  """Near are 5, 2, 9: of classes 0 to 3 hold 3, 2, 2 (4 is unreadable), 4."""
  drawn = selection.classes(found(), np.array([1, 1, 1]))
  # One of two of class 1, one of two of class 2, one of four of class 3.
  assert lists(drawn) == [[2, 3, 5, 6]] * 3
  drawn = selection.classes(found(), np.array([4, 4, 2]))
  assert len(selection.selected(drawn)) >= 7
  for label in np.unique(LABELS[selection.selected(drawn)]):
    whole = READABLE[LABELS[READABLE] == label]
    assert set(whole) <= set(selection.selected(drawn))


@pytest.mark.parametrize('images', [40, 60, 111, 200])
def test_so_many_images_are_selected_and_every_target_image_is_served(images):
  rng = np.random.default_rng(images)
  # Everyone likes some of the images better.
  liked = np.linspace(1, 0.1, 300) / np.linspace(1, 0.1, 300).sum()
  index = np.stack(
    [rng.choice(300, 20, replace=False, p=liked) for _ in range(30)]
  )
  budget_q = rng.integers(1, 9, len(index))
  least = len(np.unique(index[:, 0]))
  drawn = selection.neighbours(found(index, images=images), budget_q)
  most = len(np.unique(index))
  assert least <= images <= most
  assert len(selection.selected(drawn)) == images
  length_q = drawn.stop - drawn.start
  assert length_q.min() >= 1
  # Twice the K, twice as deep, but for the last pair and the end of a row.
  depth_q = length_q / budget_q
  free = (length_q > 1) & (length_q < index.shape[1])
  assert (depth_q[free] <= depth_q[free].min() + 1 / budget_q[free]).all()
  for q, chosen in enumerate(lists(drawn)):
    assert chosen == index[q, : len(chosen)].tolist()
  many = selection.random(
    found(index, images=images, source_n=np.arange(300)), budget_q
  )
  assert len(selection.selected(many)) == images


@pytest.mark.parametrize('images', [2, 8])
def test_a_number_of_images_that_cannot_be_is_refused(images):
  with pytest.raises(UserError, match=r'budget.images must be 3 .* to 7 '):
    selection.neighbours(found(images=images), np.array([1, 1, 1]))


@pytest.mark.parametrize('rule', [r for r in selection.RULES if r != 'none'])
def test_no_rule_reaches_beyond_its_widest(rule):
  rule = selection.RULES[rule]
  widest = (rule.widest or rule.choose)(found(), np.full(3, 4))
  reach = set(selection.selected(widest).tolist())
  for budget in ([1, 1, 1], [1, 3, 2], [4, 4, 2]):
    drawn = selection.selected(rule.choose(found(), np.array(budget)))
    assert set(drawn.tolist()) <= reach <= set(READABLE.tolist())
