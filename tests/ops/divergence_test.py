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
  """Ge & Yu, CVPR 2017, eq. 1, for one pair, in plain Python.

  The factor 1/2 and e are from the authors' Caffe release.
  """
  e = 2.2204e-16
  return sum(
    0.5
    * wd
    * (pd * math.log((pd + e) / (qd + e)) + qd * math.log((qd + e) / (pd + e)))
    for pd, qd, wd in zip(p, q, w, strict=True)
  )


def pairs(first, second, pixels, weight, row, column, many=None):
  """Distances of counts, every bin with a table of its own."""
  dims = len(weight)
  log_nd = np.log(np.arange(pixels + 1) / pixels + divergence.EPSILON)
  table = (weight[:, None] / 2 / pixels * log_nd[None]).ravel()
  start = np.arange(dims, dtype=np.int32) * (pixels + 1)
  row, column = (np.array(x, np.int32) for x in (row, column))
  with jax.enable_x64(True):
    found = jax.jit(divergence.jeffreys_pairs)(
      divergence.in_blocks(first),
      divergence.in_blocks(table[first + start[None]]),
      second,
      table,
      start,
      np.arange(len(second), dtype=np.int32),
      row,
      column,
      len(row) if many is None else many,
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
  target, source = np.array([[9, 0]]), np.array([[0, 9]])
  (distance,) = pairs(target, source, 9, np.ones(2), [0], [0])
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
  counts = [np.rint(50 * x).astype(int) for x in (target, source)]
  direct = pairs(*counts, 50, weight, q, s)
  np.testing.assert_allclose(direct.reshape(7, 9), expected, rtol=1e-12)


@pytest.mark.parametrize('dims', [1, 31, 32, 33, 512, 513, 1536, 35200])
def test_direct_form_at_every_length(dims):
  rng = np.random.default_rng(dims)
  counts = rng.integers(0, 9, (2, 3, dims)).astype(np.uint16)
  weight = rng.uniform(0.1, 1, dims)
  row, column = [2, 0, 1, 2], [1, 1, 0, 1]
  found = pairs(*counts, 8, weight, row, column)
  p, q = counts / 8
  expected = [
    math.fsum(
      weight
      / 2
      * (p[i] - q[j])
      * np.log((p[i] + 2.2204e-16) / (q[j] + 2.2204e-16))
    )
    for i, j in zip(row, column, strict=True)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert found[0] == found[3]
  # Pairs not asked for change nothing.
  again = pairs(*counts, 8, weight, row, column, many=3)
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
