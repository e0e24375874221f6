import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import histograms, release_edges


def _release_step_by_step(histogram, lower, upper, count, bins):
  """The second pass of the Caffe release: cell after cell, one p.

  Of the authors of Ge & Yu, CVPR 2017.
  """
  edges, p, left = [], 0, lower
  cell_width = (upper - lower) / len(histogram)
  for cell, cell_count in enumerate(histogram):
    p += int(cell_count)
    k = bins * p // (count + 1)
    if k >= 1:
      here = lower + (cell + 1) * cell_width
      for i in range(1, k + 1):
        edges.append(left + i * (here - left) / k)
      left, p = here, 0
  bins_left = bins - len(edges)
  for i in range(1, bins_left):
    edges.append(left + i * (upper - left) / bins_left)
  return edges


@pytest.mark.parametrize('bins', [2, 32, 100])
@pytest.mark.parametrize('tail', ['normal', 'heavy', 'relu', 'point'])
def test_release_edges_equal_a_transcription(tail, bins):
  rng = np.random.default_rng(bins)
  values = {
    'normal': rng.normal(size=5000),
    'heavy': rng.standard_cauchy(size=5000),
    'relu': np.maximum(rng.normal(size=5000), 0),
    'point': np.repeat([0.0, 1.0, 7.0], [4000, 999, 1]),
  }[tail].astype(np.float32)
  lower, upper = float(values.min()), float(values.max())
  fine, _ = np.histogram(values.astype(np.float64), 2000, (lower, upper))
  edges = release_edges.from_histogram(
    fine[None], np.float32([lower]), np.float32([upper]), len(values), bins
  )
  expected = _release_step_by_step(fine, lower, upper, len(values), bins)
  assert edges.shape == (1, bins - 1)
  np.testing.assert_allclose(
    edges[0], expected, rtol=1e-6, atol=1e-6 * (upper - lower)
  )


def test_release_edges_by_hand():
  """19 values, 4 bins: cells of 4, 6, 0, 9 on [0, 8], shares of 20.

  p = 4: 4 bins x 4/20 < 1. p = 10: k = 2, so two bins on [0, 4]. p = 9: k = 1,
  one bin on [4, 8]. One bin is left, of no width at 8.
  """
  edges = release_edges.from_histogram(
    np.array([[4, 6, 0, 9]]), np.float32([0]), np.float32([8]), 19, 4
  )
  np.testing.assert_array_equal(edges, [[2, 4, 8]])


@pytest.mark.parametrize('sizes', [(12,), (5, 7)])
def test_a_stream_has_the_edges_of_a_transcription(sizes):
  """Bounds, cells and scan over all valid pixels at once, in float64."""
  rng = np.random.default_rng(3)
  channels = [
    rng.normal(size=(12, 6, 5)),
    rng.standard_cauchy(size=(12, 6, 5)),
    np.maximum(rng.normal(size=(12, 6, 5)), 0),
    rng.integers(0, 9, (12, 6, 5)),
    np.full((12, 6, 5), -3.25),
  ]
  maps = [
    np.stack(channels, axis=-1).astype(np.float32),
    rng.normal(size=(12, 3, 3, 2)).astype(np.float32),
  ]
  valid = rng.random(12) < 0.7
  for response in maps:
    response[~valid] = np.nan  # Masked images may hold anything.

  def blocks():
    for part in np.split(np.arange(12), np.cumsum(sizes)[:-1]):
      yield [jnp.asarray(r[part]) for r in maps], jnp.asarray(valid[part])

  edges, lower, upper = release_edges.streaming_edges(blocks, 10)
  values = [r[valid][..., c].ravel() for r in maps for c in range(r.shape[-1])]
  for i, value in enumerate(values):
    value = value.astype(np.float64)
    least, most = value.min(), value.max()
    assert (lower[i], upper[i]) == (least, most)
    if least == most:
      assert (edges[i] == np.nextafter(lower[i], np.float32(0))).all()
      continue
    share = (value - least) / (most - least)
    cell = np.minimum((share * 2000).astype(int), 1999)
    expected = _release_step_by_step(
      np.bincount(cell, minlength=2000), least, most, len(value), 10
    )
    np.testing.assert_allclose(edges[i], expected, rtol=1e-6, atol=1e-5)
    counts = histograms.histogram(
      jnp.float32(value)[None, :, None, None], edges[i : i + 1]
    )
    assert counts.sum() == len(value)


def test_nan_and_nothing_are_refused():
  def blocks(value, valid):
    return lambda: [([jnp.full((1, 1, 1, 1), value)], jnp.array([valid]))]

  with pytest.raises(ValueError, match='NaN'):
    release_edges.streaming_edges(blocks(np.nan, True), 4)
  with pytest.raises(ValueError, match='valid image'):
    release_edges.streaming_edges(blocks(1.0, False), 4)
  with pytest.raises(ValueError, match='one block'):
    release_edges.streaming_edges(lambda: [], 4)
