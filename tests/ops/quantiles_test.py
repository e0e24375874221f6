import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import histograms, quantiles

TINY = np.finfo(np.float32).tiny
LARGEST = np.finfo(np.float32).max


def _stream(layers, valid, sizes):
  """Blocks of the given numbers of images."""

  def blocks():
    start = 0
    for size in sizes:
      part = slice(start, start + size)
      yield [layer[part] for layer in layers], valid[part]
      start += size

  return blocks


def test_keys_keep_the_order_and_the_value():
  value = np.float32(
    [-np.inf, -LARGEST, -2.5, -TINY, -1e-40, -0.0, 0, 1e-40, TINY, 7, np.inf]
  )
  key = np.asarray(quantiles.keys(jnp.asarray(value)))
  assert key.dtype == np.uint32
  np.testing.assert_array_equal(
    np.sign(np.diff(key.astype(np.int64))), [0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
  )
  np.testing.assert_array_equal(quantiles.values(key), histograms.settle(value))


@pytest.mark.parametrize(
  ('bins', 'sizes'), [(2, (12,)), (7, (4, 4, 4)), (100, (6, 6))]
)
def test_a_stream_has_the_edges_of_the_whole(bins, sizes):
  rng = np.random.default_rng(bins)
  shape = 12, 6, 5
  layers = [
    np.stack(
      [
        rng.normal(size=shape),
        np.maximum(rng.normal(size=shape), 0),  # After a ReLU.
        rng.standard_cauchy(size=shape) * 1e30,
        rng.integers(-2, 3, shape),  # Ties.
        np.full(shape, -3.25),
        rng.choice([-np.inf, -1e-40, -0.0, 0, 1e-40, np.inf], shape),
        1 + rng.integers(0, 400, shape) * 2.0**-23,  # One leading digit.
      ],
      axis=-1,
    ).astype(np.float32),
    rng.normal(size=(12, 3, 3, 2)).astype(np.float32),
  ]
  valid = rng.random(12) < 0.7
  for layer in layers:
    layer[~valid] = np.nan  # Masked images may hold anything.
  edges, lower, upper = quantiles.streaming_edges(
    _stream(layers, valid, sizes), bins
  )
  whole = [
    histograms.quantile_edges(layer[valid].reshape(-1, layer.shape[-1]).T, bins)
    for layer in layers
  ]
  for got, parts in zip(
    (edges, lower, upper), zip(*whole, strict=True), strict=True
  ):
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.concatenate(parts))


def test_shares_of_processes_and_devices_add_up():
  rng = np.random.default_rng(0)
  response = rng.normal(size=(16, 4, 4, 3)).astype(np.float32)
  valid = np.ones(16, bool)
  whole = quantiles.streaming_edges(_stream([response], valid, (16,)), 5)
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((8,), ('data',), axis_types=(auto,))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  sharded = jax.device_put(response, place), jax.device_put(valid, place)
  over_devices = quantiles.streaming_edges(
    lambda: [([sharded[0]], sharded[1])], 5
  )
  # The other process holds the same images, so that every count doubles.
  doubled = quantiles.streaming_edges(
    _stream([response], valid, (16,)),
    5,
    lambda reduce, counts: reduce([counts, counts], axis=0),
  )
  twice = np.concatenate([response, response]).reshape(-1, 3).T
  np.testing.assert_array_equal(over_devices[0], whole[0])
  np.testing.assert_array_equal(
    doubled[0], histograms.quantile_edges(twice, 5)[0]
  )


@pytest.mark.parametrize('nan', [np.nan, -np.nan])
def test_nan_is_refused(nan):
  response = np.zeros((1, 2, 2, 1), np.float32)
  response[0, 1, 1] = nan
  with pytest.raises(ValueError, match='NaN'):
    quantiles.streaming_edges(_stream([response], np.array([True]), (1,)), 3)


def test_no_images_are_refused():
  response = np.zeros((1, 2, 2, 1), np.float32)
  with pytest.raises(ValueError, match='block'):
    quantiles.streaming_edges(lambda: [], 3)
  with pytest.raises(ValueError, match='1 value'):
    quantiles.streaming_edges(_stream([response], np.array([False]), (1,)), 3)
