import numpy as np
import pytest
import scipy.stats

from sjft_jax import intervals

NULLS = {
  'normal': lambda rng, shape: rng.normal(size=shape),
  'heavy tails': lambda rng, shape: rng.standard_t(3, size=shape),
  'skewed': lambda rng, shape: rng.exponential(size=shape) - 1,
  # Accuracies of a few hundred test images differ by whole images.
  'coarse': lambda rng, shape: np.round(rng.normal(size=shape, scale=2)),
}


def claims(interval):
  return interval is not None and not interval[0] <= 0 <= interval[1]


@pytest.mark.parametrize('null', NULLS)
def test_gains_that_are_none_are_claimed_about_as_often_as_stated(null):
  rng = np.random.default_rng(1)
  values = NULLS[null](rng, (1000, 5))
  share = np.mean([claims(intervals.bootstrap_t(v)) for v in values])
  # Two standard errors are 1.4 points; skewed differences cost four.
  assert 0.02 < share < (0.11 if null == 'skewed' else 0.065)


def test_others_claim_more_of_them():
  rng = np.random.default_rng(2)
  resamples = rng.integers(5, size=(500, 5))

  def percentile(value_n):
    return np.quantile(value_n[resamples].mean(axis=1), [0.025, 0.975])

  def student(value_n):
    half = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(value_n)
    return value_n.mean() - half, value_n.mean() + half

  normal = NULLS['normal'](rng, (1000, 5))
  assert np.mean([claims(percentile(v)) for v in normal]) > 0.12
  skewed = NULLS['skewed'](rng, (1000, 5))
  ours = np.mean([claims(intervals.bootstrap_t(v)) for v in skewed])
  assert np.mean([claims(student(v)) for v in skewed]) > ours + 0.01


@pytest.mark.parametrize('n', [2, 3, 5, 30])
def test_the_interval_moves_with_its_values(n):
  value_n = np.random.default_rng(n).normal(size=n)
  low, high = intervals.bootstrap_t(value_n)
  assert low < value_n.mean() < high
  moved = intervals.bootstrap_t(3 * value_n[::-1] + 1)
  np.testing.assert_allclose(moved, (3 * low + 1, 3 * high + 1))
  mirrored = intervals.bootstrap_t(-value_n)
  np.testing.assert_allclose(mirrored, (-high, -low))


def test_many_values_have_students_interval():
  value_n = np.random.default_rng(0).normal(size=200)
  half = scipy.stats.t.ppf(0.975, 199) * scipy.stats.sem(value_n)
  expected = value_n.mean() - half, value_n.mean() + half
  np.testing.assert_allclose(
    intervals.bootstrap_t(value_n), expected, atol=0.15 * half
  )


def test_one_value_has_none():
  assert intervals.bootstrap_t([0.1]) is None


def test_an_outlier_does_not_make_it_absurd():
  low, high = intervals.bootstrap_t([1.65, -0.18, -1.25, -1.19, -1.02])
  assert -2 < low < high < 2.5


def test_few_equal_values_are_no_gain():
  for value_n in ([2.0] * 2, [0.1 + 0.2, 0.3, 0.3]):
    assert intervals.bootstrap_t(value_n) is None
  assert intervals.bootstrap_t([2.0] * 5) == (2.0, 2.0)


def test_equal_values_leave_nothing_open():
  assert intervals.bootstrap_t([0.0] * 5) == (0.0, 0.0)
