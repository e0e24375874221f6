import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import histograms

TINY = np.finfo(np.float32).tiny
LARGEST = np.finfo(np.float32).max


def _bin_by_rule(value, edges, lower, upper):
  """The method's rule, word for word, for edges before they are closed."""
  if value <= lower:
    return 0
  if value >= upper:
    return len(edges)
  return next((b for b, edge in enumerate(edges) if edge > value), len(edges))


def _counts(values, edges_b):
  """Counts [bins] of one channel's values."""
  response = jnp.asarray(values, jnp.float32).reshape(1, -1, 1, 1)
  return np.asarray(
    histograms.histogram(response, jnp.asarray(edges_b)[None])[0, 0]
  )


def test_edges_split_distinct_values_into_equal_masses():
  values = np.random.default_rng(0).permutation(np.arange(24, dtype=np.float32))
  edges, lower, upper = histograms.quantile_edges(values[None], 4)
  np.testing.assert_array_equal(edges, [[6, 12, 18]])
  assert (lower[0], upper[0]) == (0, 23)
  np.testing.assert_array_equal(_counts(values, edges[0]), [6, 6, 6, 6])


@pytest.mark.parametrize(
  'target',
  [
    np.maximum(np.random.default_rng(1).normal(size=200), 0),  # After a ReLU.
    np.minimum(np.random.default_rng(2).normal(size=200), 0),
    np.round(np.random.default_rng(3).normal(size=200), 1),  # Ties everywhere.
    np.full(10, 3.5),
    np.zeros(10),
    np.full(10, -TINY),
    np.array([1.0, 2.0]),  # Fewer values than bins.
    np.array([-np.inf, -1, 0, -0.0, 1e-40, -1e-40, 2, np.inf]),
  ],
)
def test_counting_closed_edges_is_the_rule(target):
  """Also for values between, at and beyond the edges and bounds."""
  target = target.astype(np.float32)
  bins = 8
  settled = histograms.settle(np.sort(target))
  raw = settled[[(j + 1) * len(target) // bins for j in range(bins - 1)]]
  edges, lower, upper = histograms.quantile_edges(target[None], bins)
  assert (np.diff(edges[0]) >= 0).all()
  assert (edges[0] > lower[0]).all()
  near = np.concatenate([settled, edges[0], [0, TINY, -TINY, LARGEST]])
  near = near[np.isfinite(near)].astype(np.float32)
  with np.errstate(over='ignore'):
    above, below = np.nextafter(near, np.inf), np.nextafter(near, -np.inf)
  values = np.concatenate([near, above, below, [np.inf, -np.inf]])
  values = np.where(np.abs(values) < TINY, 0, values).astype(np.float32)
  expected = [_bin_by_rule(value, raw, lower[0], upper[0]) for value in values]
  # Every value is an image of one pixel.
  counts = histograms.histogram(values[:, None, None, None], edges)
  np.testing.assert_array_equal(counts[:, 0], np.eye(bins, dtype=int)[expected])


@pytest.mark.parametrize(
  ('images', 'height', 'width', 'channels', 'bins'),
  [(3, 9, 7, 5, 4), (1, 8, 8, 3, 32), (2, 29, 31, 7, 100), (5, 1, 1, 2, 2)],
)
def test_counts_equal_numpy(images, height, width, channels, bins):
  rng = np.random.default_rng(bins)
  response = rng.normal(size=(images, height, width, channels)).round(2)
  response = response.astype(np.float32)
  edges = np.sort(rng.normal(size=(channels, bins - 1)).round(2)).astype('f')
  counts = histograms.histogram(response, edges)
  assert counts.dtype == jnp.int32
  for i in range(images):
    for c in range(channels):
      index = np.searchsorted(edges[c], response[i, ..., c].ravel(), 'right')
      np.testing.assert_array_equal(
        counts[i, c], np.bincount(index, minlength=bins)
      )


def test_eight_devices_count_as_one():
  rng = np.random.default_rng(0)
  response = rng.normal(size=(16, 10, 10, 3)).astype(np.float32)
  edges, _, _ = histograms.quantile_edges(response.reshape(-1, 3).T, 6)
  data = jax.sharding.PartitionSpec('data')
  auto = jax.sharding.AxisType.Auto
  sharded = jax.shard_map(
    histograms.histogram,
    mesh=jax.make_mesh((8,), ('data',), axis_types=(auto,)),
    in_specs=(data, jax.sharding.PartitionSpec()),
    out_specs=data,
  )
  np.testing.assert_array_equal(
    jax.jit(sharded)(response, edges), histograms.histogram(response, edges)
  )


def test_nan_has_a_bin_in_a_source_and_none_in_a_target():
  np.testing.assert_array_equal(_counts([np.nan, 5], np.float32([1])), [1, 1])
  with pytest.raises(ValueError, match='NaN'):
    histograms.quantile_edges(np.float32([[1, np.nan]]), 2)


def test_a_row_of_edges_is_needed_for_every_channel():
  with pytest.raises(ValueError, match='per channel'):
    histograms.histogram(jnp.zeros((1, 2, 2, 3)), jnp.zeros((2, 4)))
