import dataclasses

import jax
import numpy as np
import pytest

from sjft_jax import describe, mesh, search
from sjft_jax.ops import divergence


class Described:
  """A describer of ready counts: a data set is an array int32 [n, d]."""

  def __init__(self, bins, pixels, channels):
    d = bins * channels
    self.pixels_d = np.full(d, float(pixels))
    self.weight_d = np.full(d, 1 / channels)
    self.stop_after = None

  fractions = describe.Describer.fractions
  logs = describe.Describer.logs
  log_error = describe.Describer.log_error

  def blocks(self, dataset, *, rows, start=0):
    for done, at in enumerate(range(start, len(dataset), rows)):
      if done == self.stop_after:
        raise KeyboardInterrupt
      part = dataset[at : at + rows]
      # A row without pixels stands for an image that cannot be decoded.
      good = part.sum(axis=1) > 0
      yield describe.Block(
        index_n=at + np.flatnonzero(good),
        counts_nd=part[good],
        stop=at + len(part),
        bad=[(at + i, 'bad') for i in np.flatnonzero(~good)],
      )


def counts(rng, n, channels=3, bins=8, pixels=60):
  mass = rng.dirichlet(np.full(bins, 0.4), (n, channels))
  draw = [[rng.multinomial(pixels, m) for m in row] for row in mass]
  return np.array(draw, np.int32).reshape(n, channels * bins)


def brute_force(describer, target, source, k):
  """All pairs in float64 by the plain formula, then one stable sort."""
  p, q = target / describer.pixels_d, source / describer.pixels_d
  e = divergence.EPSILON
  log = np.log((p[:, None] + e) / (q[None] + e))
  distance = ((p[:, None] - q[None]) * log * describer.weight_d / 2).sum(-1)
  distance[:, source.sum(axis=1) == 0] = np.inf
  # Equal histograms may differ here in the last bits: a tie all the same.
  order = np.argsort(np.round(distance, 9), axis=1, kind='stable')[:, :k]
  return np.take_along_axis(distance, order, axis=1), order


@pytest.fixture
def case():
  rng = np.random.default_rng(0)
  target, source = counts(rng, 9), counts(rng, 150)
  source[70:90] = source[10:30]  # duplicates
  source[100] = target[4]  # the target image itself
  source[120:126] = 0  # cannot be decoded
  source[130] = np.tile(np.eye(8, dtype=np.int32)[0] * 60, 3)  # one-hot
  return Described(8, 60, 3), target, source


@pytest.mark.parametrize('k', [1, 10, 144])
@pytest.mark.parametrize('rows', [1, 16, 1000])
def test_neighbours_equal_brute_force_for_any_block(case, k, rows):
  describer, target, source = case
  table = search.nearest(
    describer, target, source, k=k, mesh=mesh.make(), rows=rows
  )
  distance, index = brute_force(describer, target, source, k)
  np.testing.assert_array_equal(table.index_qk, index)
  np.testing.assert_allclose(
    table.distance_qk, distance, rtol=1e-11, atol=1e-13
  )
  assert table.seen == 150
  assert table.bad_index.tolist() == list(range(120, 126))


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_devices_agree_to_the_bit(case, devices):
  describer, target, source = case
  one = search.nearest(
    describer, target, source, k=12, mesh=mesh.make(), rows=32
  )
  some = search.nearest(
    describer,
    target,
    source,
    k=12,
    mesh=mesh.make(jax.devices()[:devices]),
    rows=50,
  )
  np.testing.assert_array_equal(one.index_qk, some.index_qk)
  np.testing.assert_array_equal(one.distance_qk, some.distance_qk)


def test_a_source_with_too_few_readable_images_leaves_empty_places(case):
  describer, target, source = case
  table = search.nearest(
    describer, target, source, k=150, mesh=mesh.make(), rows=64
  )
  assert (table.index_qk[:, 144:] == -1).all()
  assert (table.index_qk[:, :144] >= 0).all()


def test_a_killed_search_goes_on_to_the_same_table(case, tmp_path, monkeypatch):
  describer, target, source = case
  whole = search.nearest(
    describer, target, source, k=12, mesh=mesh.make(), rows=16
  )
  monkeypatch.setattr(search, 'SAVE_SECONDS', 0)
  partial = tmp_path / 'partial.npz'
  settings = dict(k=12, mesh=mesh.make(), rows=16, partial=partial)
  describer.stop_after = 8  # past the unreadable ones
  with pytest.raises(KeyboardInterrupt):
    search.nearest(describer, target, source, **settings)
  assert search.Table.load(partial).seen == 128
  describer.stop_after = 2  # what is left, and no more
  resumed = search.nearest(describer, target, source, **settings)
  for field in dataclasses.fields(whole):
    np.testing.assert_array_equal(
      getattr(whole, field.name), getattr(resumed, field.name)
    )


def test_the_screen_keeps_within_its_bound():
  rng = np.random.default_rng(3)
  describer = Described(32, 64 * 64, 12)
  target, source = counts(rng, 20, 12, 32, 4096), counts(rng, 96, 12, 32, 4096)
  target_qd, log_qd = describer.fractions(target), describer.logs(target)
  screen = search.Screen(
    target_qd, log_qd, describer.weight_d, describer.log_error(), mesh.make()
  )
  distance, bound = screen(source, describer.pixels_d.astype(np.float32))
  q, s = np.divmod(np.arange(20 * 96), 96)
  exact = divergence.jeffreys_pairs(
    target_qd[q],
    log_qd[q],
    describer.fractions(source)[s],
    describer.logs(source)[s],
    describer.weight_d,
  ).reshape(20, 96)
  error = np.abs(np.asarray(distance, np.float64) - exact).max(axis=1)
  assert (error <= bound).all()
  # A bound is of use only if it is small beside the distances.
  assert (bound < 0.01 * np.median(exact, axis=1)).all()


def test_neighbours_file_round_trip(case, tmp_path):
  describer, target, source = case
  table = search.nearest(
    describer, target, source, k=150, mesh=mesh.make(), rows=64
  )
  target_ids = np.array([f'target:{i}' for i in range(9)])
  source_ids = np.array([f'main:{i}, "é"' for i in range(150)])
  path = tmp_path / 'neighbours.parquet'
  search.write(path, table, target_ids, source_ids)
  distance, index = search.read(path, target_ids, source_ids)
  np.testing.assert_array_equal(distance, table.distance_qk[:, :144])
  np.testing.assert_array_equal(index, table.index_qk[:, :144])
  with pytest.raises(ValueError, match='main:7'):
    search.read(path, target_ids, np.delete(source_ids, 7))
