import dataclasses
import functools
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from sjft_jax import exact, machine, mesh, screen, search, tables
from sjft_jax.errors import UserError
from sjft_jax.exact import Exact
from sjft_jax.ops import divergence
from sjft_jax.ops import screen as kernels
from tests.described import Describer, Stream, counts


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
  return Describer(8, 60, 3), target, source


def find(case, stop_after=np.inf, **settings):
  describer, target, source = case
  settings = dict(mesh=mesh.make(jax.devices()[:1]), rows=64) | settings
  return search.nearest(
    Stream(describer, target), Stream(describer, source, stop_after), **settings
  )


def assert_same(found, other):
  np.testing.assert_array_equal(found.table.index_qk, other.table.index_qk)
  np.testing.assert_array_equal(
    found.table.distance_qk, other.table.distance_qk
  )
  np.testing.assert_array_equal(found.beyond_q, other.beyond_q)


@pytest.mark.parametrize('k', [1, 10, 144])
@pytest.mark.parametrize(
  'how',
  [
    dict(rows=7, rank=0, operands='float32'),
    dict(rows=1000, rank=0, operands='bfloat16'),
    dict(rows=16, rank=4, operands='float32', shard_images=40),
    dict(rows=32, rank=24, operands='bfloat16', shard_images=100),
  ],
)
def test_neighbours_equal_brute_force_however_they_are_screened(case, k, how):
  found = find(case, k=k, **how)
  distance, index = brute_force(*case, k)
  np.testing.assert_array_equal(found.table.index_qk, index)
  np.testing.assert_allclose(
    found.table.distance_qk, distance, rtol=1e-11, atol=1e-13
  )
  assert found.seen.images == 150
  assert found.seen.good == 144
  assert found.bad == dict.fromkeys(range(120, 126), 'bad')


@pytest.mark.parametrize('part', [1e9, 1e-9])
def test_limits_may_come_late(case, part, monkeypatch):
  usual = find(case, k=12, rows=16)
  monkeypatch.setattr(search, '_COUNTED_PART', part)
  other = find(case, k=12, rows=16)
  assert_same(usual, other)
  assert (other.seen.opened > usual.seen.opened) == (part < 1)


def test_the_nearest_image_left_out_is_known(case):
  distance, _ = brute_force(*case, 11)
  found = find(case, k=10)
  np.testing.assert_allclose(found.beyond_q, distance[:, 10], rtol=1e-11)
  assert np.isinf(find(case, k=144).beyond_q).all()


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_devices_agree_to_the_bit(case, devices):
  some = mesh.make(jax.devices()[:devices])
  for rank in (0, 4):
    one = find(case, k=12, rank=rank, rows=32)
    assert_same(one, find(case, k=12, rank=rank, rows=50, mesh=some))


@pytest.mark.parametrize('parts', [2, 4])
@pytest.mark.parametrize('rank', [0, 4])
def test_targets_shared_by_devices_agree_to_the_bit(case, rank, parts):
  some = mesh.make(jax.devices()[:4])
  one = find(case, k=12, rank=rank, rows=32)
  shared = find(case, k=12, rank=rank, rows=50, mesh=some, target_parts=parts)
  assert_same(one, shared)


def test_no_device_holds_more_than_its_part_of_the_targets(case):
  describer, target, _ = case
  some = mesh.make(jax.devices()[:4])
  whole, parted = (
    screen.Screen(target, describer, some, rank=0, target_parts=parts)
    for parts in (1, 4)
  )

  def held(screen_):
    shards = screen_._constants.left_gnd.addressable_shards
    return {shard.data.shape[1] for shard in shards}

  assert held(whole) == {len(target)}
  assert held(parted) == {-(-len(target) // 4)}


def test_devices_that_the_targets_cannot_share_are_one_line(case):
  with pytest.raises(UserError, match=r'target_parts.*came 3, and there are 4'):
    find(case, k=2, mesh=mesh.make(jax.devices()[:4]), target_parts=3)


def test_a_source_with_too_few_readable_images_leaves_empty_places(case):
  table = find(case, k=150).table
  assert (table.index_qk[:, 144:] == -1).all()
  assert (table.index_qk[:, :144] >= 0).all()


def test_identical_images_are_taken_in_order():
  describer, rng = Describer(8, 60, 3), np.random.default_rng(5)
  one = counts(rng, 1)
  case = describer, np.repeat(one, 3, 0), np.repeat(one, 40, 0)
  found = find(case, k=10, rows=16, shard_images=16)
  assert (found.table.index_qk == np.arange(10)).all()
  assert not found.table.distance_qk.any()
  assert not found.beyond_q.any()


def test_a_killed_search_goes_on_to_the_same_table(case, tmp_path):
  whole = find(case, k=12, rows=16, shard_images=32)
  settings = dict(k=12, rows=16, shard_images=32, directory=tmp_path)
  with pytest.raises(KeyboardInterrupt):
    find(case, stop_after=130, **settings)  # past the bad ones
  # What is left, and no more: four shards were finished.
  resumed = find(case, stop_after=150 - 128, **settings)
  assert_same(whole, resumed)
  assert resumed.bad == whole.bad
  assert resumed.seen.images == whole.seen.images
  assert_same(whole, find(case, stop_after=0, **settings))


def test_processes_agree_to_the_bit(case, tmp_path):
  """Two halves of the work, one after the other, and one that takes both."""
  whole = find(case, k=12)
  settings = dict(k=12, shard_images=32, directory=tmp_path)
  describer, target, _ = case
  shards = search._Shards(
    tmp_path,
    search._grid(150, 24, 2, 32),
    (0, 2),
    search._digest(target, describer),
  )
  waited = []

  def wait(self, shard):
    waited.append(shard)
    raise TimeoutError

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(search._Shards, 'wait', wait)
    with pytest.raises(TimeoutError):
      find(case, share=(0, 2), **settings)
  assert waited == [(32, 64)]  # the other's first
  assert [shards.has(s) for s in shards.ranges] == [1, 0, 1, 0, 1]
  assert_same(whole, find(case, share=(1, 2), **settings))


@pytest.mark.parametrize('what', ['responses', 'logarithms'])
def test_one_search_is_of_one_kind_of_machine(
  case, tmp_path, monkeypatch, what
):
  settings = dict(k=12, shard_images=32, directory=tmp_path)
  with pytest.raises(KeyboardInterrupt):
    find(case, stop_after=100, **settings)
  kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
  assert len(kept) == 4
  describer, target, source = case
  with monkeypatch.context() as patch:
    patch.setattr(machine, 'described', lambda: dict(platform='x', jaxlib='9'))
    if what == 'responses':
      target = target.copy()
      target[8, :2] += np.array([1, -1]) * np.sign(target[8, 1] or -1)
    else:
      log = np.log
      patch.setattr(np, 'log', lambda x: np.nextafter(log(x), 0))
    for share in ((0, 2), (1, 2)):
      with pytest.raises(
        UserError, match=r'begun on .*; here, on x, jaxlib 9, '
      ):
        find((describer, target, source), share=share, **settings)
  assert kept == {path: path.read_bytes() for path in tmp_path.iterdir()}
  assert_same(find(case, k=12), find(case, **settings))


@pytest.mark.parametrize(
  'order',
  [[0, 1, 1, 2], [0, 2], [0, 1], [1, 0, 1, 2], [0, 1, 2, 3], [3, 1, 2]],
  ids=str,
)
def test_a_stream_that_drops_or_repeats_a_block_is_refused(
  case, tmp_path, order
):
  describer, target, source = case

  class Broken(Stream):
    def blocks(self, start, stop, rows):
      blocks = list(super().blocks(0, 150, rows))
      return iter(blocks[i] for i in order) if start == 0 else blocks[3:]

  with pytest.raises(RuntimeError, match='The stream gave'):
    search.nearest(
      Stream(describer, target),
      Broken(describer, source),
      k=12,
      mesh=mesh.make(jax.devices()[:1]),
      directory=tmp_path,
      rows=40,
      shard_images=120,
    )
  assert [path.name for path in tmp_path.iterdir()] == ['shards.json']


class Outage(Stream):
  """A stream of which some images cannot be read so many times."""

  def __init__(self, describer, counts_nd, lost, times):
    super().__init__(describer, counts_nd)
    ids = [f's:{i}' for i in range(len(counts_nd))]
    self.dataset = types.SimpleNamespace(ids=ids)
    self.left = dict.fromkeys(lost, times)

  def blocks(self, start, stop, rows):
    for block in super().blocks(start, stop, rows):
      yield self._without(block)

  def again(self, index_n, rows):
    for i in index_n.tolist():
      yield from self.blocks(i, i + 1, rows)

  def _without(self, block):
    lost = [i for i in block.index_n.tolist() if self.left.get(i)]
    for i in lost:
      self.left[i] -= 1
    good_n = ~np.isin(block.index_n, lost)
    return dataclasses.replace(
      block,
      index_n=block.index_n[good_n],
      counts_nd=block.counts_nd[good_n],
      bad=block.bad + [(i, 'cannot be read now: stale') for i in lost],
    )


def outage(case, lost, times, **settings):
  describer, target, source = case
  return search.nearest(
    Stream(describer, target),
    Outage(describer, source, lost, times),
    k=12,
    mesh=mesh.make(jax.devices()[:1]),
    rows=16,
    shard_images=40,
    max_bad_fraction=0.1,
    **settings,
  )


def test_an_outage_ends_the_search_and_leaves_nothing_of_itself(
  case, tmp_path, monkeypatch
):
  monkeypatch.setattr(search, '_AGAIN', 2)
  with pytest.raises(UserError, match=r'5 or more of 40 .* s:41 among'):
    outage(case, range(41, 60), 1, directory=tmp_path)
  kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert sorted(kept) == ['shard-0-40.npz', 'shards.json']
  again = outage(case, (), 0, directory=tmp_path)
  assert_same(again, find(case, k=12))
  for name, content in kept.items():
    assert (tmp_path / name).read_bytes() == content


def test_what_still_cannot_be_read_counts_by_the_whole_source(case, tmp_path):
  with pytest.raises(UserError, match=r'16 or more of 150 .* s:41 among'):
    outage(case, range(41, 60), 2, directory=tmp_path)
  assert not (tmp_path / 'shard-40-80.npz').exists()
  # Also where each shard has but some of them; the others are kept.
  with pytest.raises(UserError, match=r'16 or more of 150 .* s:32 among'):
    outage(case, range(32, 48), 2, directory=tmp_path / 'two')
  kept = sorted(path.name for path in (tmp_path / 'two').glob('shard-*'))
  assert kept == ['shard-120-150.npz', 'shard-80-120.npz']
  found = outage(case, (), 0, directory=tmp_path / 'two')
  assert_same(found, find(case, k=12))
  # Fifteen are a tenth.
  found = outage(case, range(41, 56), 2)
  assert sum('stale' in why for why in found.bad.values()) == 15


def test_a_few_images_that_cannot_be_read_are_asked_for_once_more(case):
  lost = [0, 19, 39, 100, 147]
  found = outage(case, lost, 1)
  assert_same(found, find(case, k=12))
  assert found.seen.images == 150
  assert found.bad == dict.fromkeys(range(120, 126), 'bad')
  describer, target, source = case
  gone = source.copy()
  gone[lost] = 0
  found = outage(case, lost, 2)
  assert_same(found, find((describer, target, gone), k=12))
  assert {i for i, why in found.bad.items() if 'stale' in why} == set(lost)
  assert (found.times_s == 1).all()


def test_a_target_image_that_is_lost_meanwhile_ends_the_search(case):
  describer, target, source = case
  target = target.copy()
  target[4] = 0
  with pytest.raises(UserError, match='cannot be read any more'):
    find((describer, target, source), k=12)


def dense(rng):
  return counts(rng, 20, 12, 32, 4096), counts(rng, 96, 12, 32, 4096)


def hostile(rng):
  """One-hot and flat histograms, copies, and single pixels that moved."""
  flat = np.full((4, 12 * 32), 128)
  hot = np.zeros((4, 12, 32), int)
  hot[np.arange(4), :, rng.integers(0, 32, 4)] = 4096
  near = flat.copy()
  near[:, 0], near[:, 1] = 129, 127
  rows = np.concatenate([flat, hot.reshape(4, -1), near])
  return rows, np.concatenate([rows, counts(rng, 20, 12, 32, 4096)])


def outside(asked, source):
  """What the screen's directions miss of u and v of every row, float64 [s]."""
  operands = asked._constants
  w_dr = np.concatenate(np.asarray(operands.left_gnd, np.float64), axis=-1).T
  counts = asked.block(source, len(source))
  missed = []
  for parts in zip(
    *(
      kernels.lifted(counts, operands, group, divergence.EPSILON)
      for group in range(len(operands.left_gnd))
    ),
    strict=True,
  ):
    x_sd = np.concatenate([np.asarray(p, np.float64) for p in parts], axis=-1)
    z_rs = np.linalg.lstsq(w_dr, x_sd[: len(source)].T)[0]
    missed.append(np.linalg.norm(x_sd[: len(source)] - (w_dr @ z_rs).T, axis=1))
  return missed


@pytest.mark.parametrize('rank', [0, 8, 40])
@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
@pytest.mark.parametrize('draw', [dense, hostile])
def test_the_bounds_hold(draw, operands, rank):
  describer = Describer(32, 64 * 64, 12)
  target, source = draw(np.random.default_rng(3))
  asked = screen.Screen(
    target, describer, mesh.make(), rank=rank, operands=operands
  )
  lower, upper, *norms = asked.bounds(
    asked.block(source, len(source)), len(source)
  )
  lower = lower.astype(np.float64) + asked.floor_q
  q, s = np.divmod(np.arange(len(target) * len(source)), len(source))
  order = np.argsort(s, kind='stable')
  distance_qs = np.empty((len(target), len(source)))
  distance_qs[q[order], s[order]] = Exact(target, describer)(
    source, s[order], q[order]
  )
  assert (lower <= distance_qs.T).all()
  assert (upper >= distance_qs.T).all()
  # But for what is outside the directions, all of the width is rounding, and
  # what is reported covers it.
  rest_s, log_rest_s = (
    outside(asked, source) if rank else np.zeros((2, len(source)))
  )
  rest_q, log_rest_q = asked._rests_q
  missed_sq = np.multiply.outer(rest_s, log_rest_q)
  missed_sq += np.multiply.outer(log_rest_s, rest_q)
  width_sq = upper - lower - 2.001 * missed_sq
  assert width_sq.max() <= 2.001 * asked.rounding(*norms)
  if rank == 0 and draw is dense:
    # Bounds are of use only if they are close beside the distances.
    width = (upper - lower).max()
    share = {'float32': 0.01, 'bfloat16': 0.1}[operands]
    assert width < share * np.median(distance_qs)


# Base of the targets, 256 x 256 pixels: with some of them the directions once
# excluded an image that was nearer than what was kept.
AMID = [(15516, 19311, 16828, 13881), (15591, 12519, 12331, 25095)]


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('base', AMID, ids=str)
def test_an_image_amid_the_targets_is_not_lost(base, rank, operands):
  """A CPU has its u and v as 0, which they are not in truth."""
  describer, base = Describer(4, 2**16, 1), np.array(base)
  one, other = np.array([[1, -1, 0, 0], [0, 0, 1, -1]])
  one *= np.sign(base[0] - base[1])
  # One direction holds the moves of the many, and nothing of the first two.
  moves = np.array([one, -one] + [other, -other] * 8)
  target = (base + moves).astype(np.int32)
  # A little farther from the first target than the base is, on the other side.
  source = np.array([base + 2 * one] * 2 + [base], np.int32)
  found = find(
    (describer, target, source),
    k=1,
    rank=rank,
    operands=operands,
    shard_images=2,
  )
  assert found.table.index_qk[0, 0] == 2
  asked = screen.Screen(
    target,
    describer,
    mesh.make(jax.devices()[:1]),
    rank=rank,
    operands=operands,
  )
  lower, upper, *_ = asked.bounds(asked.block(source, 3), 3)
  distance = Exact(target, describer)(
    source, np.array([0, 2]), np.zeros(2, int)
  )
  assert distance[1] < distance[0]
  assert lower[2, 0] + asked.floor_q[0] <= distance[1] <= upper[2, 0]


def test_directions_that_are_not_orthonormal_are_refused(case, monkeypatch):
  describer, target, _ = case
  monkeypatch.setattr(
    screen, '_leading', lambda z_nd, rank: np.eye(z_nd.shape[1], rank) * 0.97
  )
  with pytest.raises(UserError, match=r'for 4 directions .* search\.rank'):
    screen.Screen(target, describer, mesh.make(), rank=4)


@pytest.mark.parametrize('pixels', [60, 729, 2916, 3136, 4096])
def test_fractions_and_logarithms_are_off_by_what_the_bounds_allow(pixels):
  describer = Describer(4, pixels, 2)
  count_sd = np.tile(np.arange(pixels + 1), (8, 1)).T
  asked = screen.Screen(count_sd[:9], describer, mesh.make(), rank=0)
  plain = dataclasses.replace(
    asked._constants,
    centre_gd=jnp.zeros((1, 8)),
    log_centre_gd=jnp.zeros((1, 8)),
    scale_gd=jnp.ones((1, 8)),
    log_scale_gd=jnp.ones((1, 8)),
  )
  epsilon = divergence.EPSILON
  lifted = jax.jit(functools.partial(kernels.lifted, epsilon=epsilon))
  fraction_sd, log_sd = lifted(count_sd.astype(np.uint16), plain, 0)
  off_sd = np.asarray(fraction_sd, np.float64)[1:] / (count_sd[1:] / pixels) - 1
  assert np.abs(off_sd).max() <= asked._fraction < 2.001 * screen.ROUNDING
  off_sd = np.asarray(log_sd, np.float64) - np.log(count_sd / pixels + epsilon)
  assert np.abs(off_sd).max() <= describer.log_error()
  # So large on every device: float64's own errors are small beside it.
  assert describer.log_error() > 6.8e-7


def test_no_device_is_trusted_with_a_division(case):
  describer, target, source = case
  asked = screen.Screen(target, describer, mesh.make(), rank=4)
  program = jax.make_jaxpr(
    functools.partial(kernels.bounds, epsilon=divergence.EPSILON)
  )(asked.block(source, len(source)), asked._constants)
  assert ' div ' not in str(program)


def test_products_are_compared_where_starting_them_takes_no_part(monkeypatch):
  asked = []

  def seconds(operands, rows):
    asked.append(rows)
    speed = {'float32': 6e13, 'bfloat16': 6e14}[operands]
    return 2e-4 + 4 * rows**3 / speed

  monkeypatch.setattr(screen, '_product_seconds', seconds)
  # On a CPU a product takes a few milliseconds at once.
  assert screen.faster_operands.__wrapped__() == 'float32'
  assert set(asked) == {512}
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert screen.faster_operands.__wrapped__() == 'bfloat16'
  assert seconds('float32', asked[-1]) >= 5e-3
  assert seconds('float32', asked[-1] // 2) < 5e-3


def test_a_block_of_the_full_shape_is_taken_as_it_lies(case):
  describer, target, source = case
  one = mesh.make(jax.devices()[:1])
  asked = screen.Screen(target, describer, one, rank=0)
  counts_sd = mesh.aligned((128, 24), asked.count_type)
  counts_sd[:] = source[:128]
  blocks = [
    asked.block(counts_sd[at:stop], 64) for at, stop in ((0, 64), (64, 99))
  ]
  assert blocks[0].unsafe_buffer_pointer() == counts_sd.ctypes.data
  found = np.concatenate([np.asarray(block) for block in blocks])
  np.testing.assert_array_equal(found[:99], source[:99])
  assert not found[99:].any()


@pytest.mark.parametrize('numbers', [1, 50, 10**9])
def test_targets_are_lifted_a_few_at_a_time(case, numbers, monkeypatch):
  describer, target, _ = case
  monkeypatch.setattr(screen, '_LIFTED', numbers)
  lifted = screen._Lifted(target, describer)
  fraction_qd = target / describer.pixels_d
  np.testing.assert_allclose(
    lifted.centre_d, fraction_qd.mean(axis=0), rtol=1e-6
  )
  spread_d = np.log(fraction_qd + divergence.EPSILON).std(axis=0)
  ratio_d = lifted.scale_d**2 * fraction_qd.std(axis=0) / spread_d
  ratio_d /= describer.weight_d / 2
  np.testing.assert_allclose(ratio_d, 1, rtol=0.02)
  both = lifted.each(lambda rows, u_nd, v_nd: {'u': u_nd, 'v': v_nd})
  distance_qq = np.einsum(
    'abd,abd->ab', *(x[:, None] - x[None] for x in both.values())
  )
  expected, order = brute_force(describer, target, target, len(target))
  np.testing.assert_allclose(
    np.take_along_axis(distance_qq, order, axis=1), expected, atol=1e-12
  )


def test_a_missing_cpu_is_one_line(monkeypatch):
  def none(backend):
    raise RuntimeError(f'Unknown backend {backend}')

  monkeypatch.setattr(jax, 'local_devices', none)
  with pytest.raises(UserError, match='JAX_PLATFORMS=tpu,cpu'):
    exact.cpu()


def test_exact_distances_equal_the_formula(case):
  describer, target, source = case
  s, q = np.divmod(np.arange(150 * 9), 9)
  distance = Exact(target, describer)(source, s, q).reshape(150, 9)
  expected = brute_force(describer, target, source[:120], 120)[0]
  np.testing.assert_allclose(
    np.sort(distance[:120].T, axis=1), expected, rtol=1e-11, atol=1e-13
  )


def test_tiles_and_groups_of_targets_do_not_change_a_bit(case, monkeypatch):
  describer, target, source = case
  row, column = np.divmod(np.arange(9 * 150), 150)
  order = np.argsort(column, kind='stable')[::2]
  row, column = row[order], column[order]
  asked = Exact(target, describer)
  whole = asked(source, column, row)
  # Tiles end at images, and in the midst of one's pairs; groups of 4, 4 and 1.
  for rows, pairs in ((16, 1000), (1000, 7)):
    monkeypatch.setattr(exact, '_ROWS', rows)
    monkeypatch.setattr(exact, '_PAIRS', pairs)
    monkeypatch.setattr(exact, '_GROUP', 4)
    np.testing.assert_array_equal(asked(source, column, row), whole)


def test_neighbours_file_round_trip(case, tmp_path):
  table = find(case, k=150).table
  target_ids = np.array([f'target:{i}' for i in range(9)])
  source_ids = np.array([f'main:{i}, "é"' for i in range(150)])
  path = tmp_path / 'neighbours.parquet'
  tables.write(path, table, target_ids, source_ids)
  stored = tables.read(path, target_ids, source_ids)
  np.testing.assert_array_equal(stored.distance_qk, table.distance_qk[:, :144])
  np.testing.assert_array_equal(stored.index_qk, table.index_qk[:, :144])
  with pytest.raises(ValueError, match='main:7'):
    tables.read(path, target_ids, np.delete(source_ids, 7))


def test_neighbours_are_kept_in_row_groups(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, '_PAIRS', 3)
  table = tables.Table.empty(4, 3)
  row, index = np.array([[0, 0, 0, 1, 3, 3], [4, 0, 2, 1, 2, 3]])
  table.merge(row, index, np.arange(6.0))
  target_ids = np.array([f'target:{i}' for i in range(4)])
  source_ids = np.array([f'main:{i}' for i in range(5)])
  path = tmp_path / 'neighbours.parquet'
  tables.write(path, table, target_ids, source_ids)
  assert pq.ParquetFile(path).num_row_groups == 2
  stored = tables.read(path, target_ids, source_ids)
  np.testing.assert_array_equal(stored.distance_qk, table.distance_qk)
  np.testing.assert_array_equal(stored.index_qk, table.index_qk)
  with pytest.raises(ValueError, match='called target:3'):
    tables.read(path, target_ids[:3], source_ids)


def test_a_row_of_very_many_pairs_takes_no_memory_in_the_others():
  rng = np.random.default_rng(0)
  row = rng.permutation(np.r_[np.arange(300), np.full(30_000, 7)])
  index = rng.permutation(len(row))
  distance = rng.integers(0, 3000, len(row)).astype(float)  # with ties
  table = tables.Table.empty(300, 5)
  tracemalloc.start()
  table.merge(row, index, distance)
  assert tracemalloc.get_traced_memory()[1] < 2**24
  tracemalloc.stop()
  order = np.lexsort((index, distance, row))
  for q in range(300):
    nearest = order[row[order] == q][:5]
    np.testing.assert_array_equal(
      table.index_qk[q, : len(nearest)], index[nearest]
    )
    np.testing.assert_array_equal(
      table.distance_qk[q, : len(nearest)], distance[nearest]
    )
