import math

import jax
import numpy as np
import pytest

from sjft_jax.ops import divergence


def histograms(rng, n, channels, bins, pixels=50):
  counts = rng.multinomial(
    pixels, rng.dirichlet(np.ones(bins) / 3, (n, channels))
  )
  return counts.reshape(n, -1) / pixels


def oracle(p, q, w):
  """The formula as METHOD writes it, one pair, in plain Python."""
  e = 2.2204e-16
  return sum(
    0.5
    * wd
    * (pd * math.log((pd + e) / (qd + e)) + qd * math.log((qd + e) / (pd + e)))
    for pd, qd, wd in zip(p, q, w, strict=True)
  )


def pairs(first, first_log, second, second_log, row, column, many=None):
  row, column = (np.array(x, np.int32) for x in (row, column))
  with jax.enable_x64(True):
    arrays = first, first_log, second, second_log
    found = jax.jit(divergence.jeffreys_pairs)(
      *arrays, row, column, len(row) if many is None else many
    )
    return np.asarray(found)


def test_a_case_worked_by_hand():
  # One channel of two bins, weight 1: 1/2 (1/4 ln(3/4 : 1/2) - ...).
  target = np.array([[0.75, 0.25]], np.float32)
  source = np.array([[0.5, 0.5], [0.75, 0.25]], np.float32)
  distance = divergence.pairwise_jeffreys(target, source, np.ones(2, 'f'))
  expected = 0.5 * (0.25 * math.log(1.5) - 0.25 * math.log(0.5))
  np.testing.assert_allclose(distance, [[expected, 0]], atol=1e-6)


def test_an_empty_bin_against_mass_costs_the_logarithm_of_epsilon():
  target = np.array([[1.0, 0.0]])
  source = np.array([[0.0, 1.0]])
  logs = [np.log(x + divergence.EPSILON) / 2 for x in (target, source)]
  (distance,) = pairs(target, logs[0], source, logs[1], [0], [0])
  assert distance == pytest.approx(-math.log(2.2204e-16), rel=1e-12)


def test_lifted_and_direct_forms_equal_the_formula():
  rng = np.random.default_rng(0)
  target, source = histograms(rng, 7, 3, 5), histograms(rng, 9, 3, 5)
  weight = np.repeat(rng.uniform(0.1, 1, 3), 5)
  expected = [[oracle(t, s, weight) for s in source] for t in target]
  lifted = divergence.pairwise_jeffreys(
    *(x.astype(np.float32) for x in (target, source, weight))
  )
  np.testing.assert_allclose(lifted, expected, rtol=2e-5, atol=2e-5)
  q, s = np.divmod(np.arange(63), 9)
  log = [np.log(x + divergence.EPSILON) * weight / 2 for x in (target, source)]
  direct = pairs(target, log[0], source, log[1], q, s)
  np.testing.assert_allclose(direct.reshape(7, 9), expected, rtol=1e-12)


@pytest.mark.parametrize('dims', [1, 31, 32, 33, 2048, 2049, 35200])
def test_direct_form_at_every_length(dims):
  rng = np.random.default_rng(dims)
  counts = rng.integers(0, 50, (2, 3, dims)).astype(np.float32)
  log = np.log(counts.astype(np.float64) + 1)
  row, column = [2, 0, 1, 2], [1, 1, 0, 1]
  found = pairs(counts[0], log[0], counts[1], log[1], row, column)
  expected = [
    math.fsum((counts[0, i] - counts[1, j]) * (log[0, i] - log[1, j]))
    for i, j in zip(row, column, strict=True)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-14)
  assert found[0] == found[3]
  assert divergence.whole_width(dims) >= dims
  # Zeros beyond the last bin, and pairs not asked for, change nothing.
  width = divergence.whole_width(dims) - dims
  wide = [
    np.pad(x, ((0, 0), (0, width))) for x in (counts[0], log[0], counts[1])
  ]
  wide.append(np.pad(log[1], ((0, 0), (0, width))))
  again = pairs(*wide, row, column, many=3)
  np.testing.assert_array_equal(again, [*found[:3], 0])


def test_distance_is_symmetric_and_zero_only_for_equal_histograms():
  rng = np.random.default_rng(1)
  a = histograms(rng, 6, 2, 4).astype(np.float32)
  distance = divergence.pairwise_jeffreys(a, a, np.full(8, 0.5, np.float32))
  np.testing.assert_allclose(distance, distance.T, atol=1e-5)
  assert (np.asarray(distance)[~np.eye(6, dtype=bool)] > 1e-3).all()
  np.testing.assert_allclose(np.diag(distance), 0, atol=1e-5)


def test_gradient_is_finite_and_vanishes_at_equality():
  rng = np.random.default_rng(2)
  a = histograms(rng, 1, 2, 4).astype(np.float32) + np.float32(0.01)
  weight = np.ones(8, np.float32)
  gradient = jax.grad(
    lambda x: divergence.pairwise_jeffreys(a, x, weight).sum()
  )(a)
  np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_lengths_that_differ_are_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r'\(2, 3\).*\(2, 4\)'):
    divergence.pairwise_jeffreys(np.ones((2, 3)), np.ones((2, 4)), np.ones(3))
