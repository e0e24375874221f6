"""Intervals of a mean from a handful of paired differences."""

import functools
import math

import numpy as np

_RESAMPLES = 10_000
# Noise of the smoothed bootstrap, in standard deviations of the values.
_NOISE = 0.5
# Accuracies that differ by less are the same, but for their last digits.
_EQUAL = 1e-9
# Of so few values it is no wonder if all are equal, as on a small test set.
_FEW = 5


def bootstrap_t(
  value_n, confidence: float = 0.95
) -> tuple[float, float] | None:
  """The smoothed, studentised bootstrap interval of the mean.

  low, high = mean - s q(1 - a/2), mean - s q(a/2), where s is the standard
  error, a = 1 - confidence and q the quantile of (mean* - mean) / s* over
  resamples, to whose values a little noise is added.

  The percentile bootstrap is far too narrow for five values: of differences
  without an effect it calls one in six significant, this one in twenty. Without
  the noise, a resample may hold one value five times, and the interval can be
  several times as wide as all values are apart. It is a tenth wider than
  Student's t, and bears skewed differences better.

  Args:
    value_n: float [n], n >= 1.
    confidence: share of such intervals that hold the true mean.

  Returns:
    (low, high), the same for the same values in any order; None for one value,
    or for fewer than five that are equal and not 0.

  Source: Hall, Annals of Statistics 16, 1988; Efron & Tibshirani, An
  Introduction to the Bootstrap, 1993, sections 12.5 and 16.4 (smoothing).
  """
  value_n = np.sort(np.asarray(value_n, np.float64))
  n, tail = len(value_n), (1 - confidence) / 2
  if n < 2:
    return None
  mean, spread = value_n.mean(), value_n.std(ddof=1)
  if spread <= _EQUAL:
    few = n < _FEW and abs(mean) > _EQUAL
    return None if few else (float(mean), float(mean))
  index_rn, noise_rn = _resamples(n)
  resample_rn = value_n[index_rn] + _NOISE * spread * noise_rn
  # Of a mean: both spreads are divided by the root of n.
  t_r = (resample_rn.mean(axis=1) - mean) / resample_rn.std(axis=1, ddof=1)
  low, high = np.quantile(t_r, [tail, 1 - tail]) * spread
  return float(mean - high), float(mean - low)


@functools.lru_cache(maxsize=4)
def _resamples(n):
  """Positions of n sorted values and noise, both [r, n]; the same every time.

  Every resample has a mirror image, so that mirrored values have a mirrored
  interval.
  """
  rng = np.random.default_rng(0)
  half = math.ceil(_RESAMPLES / 2)
  index_rn, noise_rn = (
    rng.integers(n, size=(half, n)),
    rng.normal(size=(half, n)),
  )
  return (
    np.concatenate([index_rn, n - 1 - index_rn]),
    np.concatenate([noise_rn, -noise_rn]),
  )
