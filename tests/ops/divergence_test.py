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
  (distance,) = divergence.jeffreys_pairs(target, logs[0], source, logs[1])
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
  direct = divergence.jeffreys_pairs(target[q], log[0][q], source[s], log[1][s])
  np.testing.assert_allclose(direct.reshape(7, 9), expected, rtol=1e-12)


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
