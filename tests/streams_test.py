import numpy as np
import pytest

from sjft_jax import describe, streams
from sjft_jax.errors import UserError

BAD = (3, 1030, 2049)


class Numbers:
  """A data set of numbers."""

  def __init__(self, value):
    self.value = np.asarray(value)

  def __len__(self):
    return len(self.value)

  def subset(self, index):
    return Numbers(self.value[index])


class Describer:
  """Counts that tell which number was described, in blocks of 48."""

  pixels_d = np.full(5, 400.0)
  weight_d = np.ones(5)

  def __init__(self, bad=BAD, reason='bad'):
    self.described, self.stop_after = [], np.inf
    self.bad, self.reason = bad, reason

  def blocks(self, dataset, *, rows):
    step = min(rows, 48)
    for at in range(0, len(dataset), step):
      part = dataset.value[at : at + step]
      self.described += part.tolist()
      if len(self.described) > self.stop_after:
        raise KeyboardInterrupt
      good = ~np.isin(part, self.bad)
      yield describe.Block(
        index_n=at + np.flatnonzero(good),
        counts_nd=(part[good, None] * 7 + np.arange(5)).astype(np.int32) % 401,
        stop=at + len(part),
        bad=[
          (at + i, f'{self.reason} {part[i]}') for i in np.flatnonzero(~good)
        ],
      )


def joined(stream, start, stop, rows=100):
  blocks = list(stream.blocks(start, stop, rows))
  assert all(len(b.index_n) == len(b.counts_nd) <= rows for b in blocks)
  stops = [b.stop for b in blocks]
  assert stops == sorted(stops)
  assert stops[-1] == stop
  return (
    np.concatenate([b.index_n for b in blocks]),
    np.concatenate([b.counts_nd for b in blocks]),
    [entry for b in blocks for entry in b.bad],
  )


def assert_same(first, second):
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])
  assert first[2] == second[2]


@pytest.mark.parametrize('stretch', [(0, 2100), (1024, 2048), (5, 1500)])
def test_what_a_cache_yields_is_what_was_described(tmp_path, stretch):
  numbers, describer = Numbers(np.arange(2100)), Describer()
  plain = joined(streams.Described(describer, numbers), *stretch)
  assert [i for i, _ in plain[2]] == [
    i for i in BAD if stretch[0] <= i < stretch[1]
  ]
  for _ in range(2):  # written, then read
    cache = streams.Cached(describer, numbers, tmp_path, 'key')
    assert_same(joined(cache, *stretch), plain)


def test_a_second_search_describes_nothing(tmp_path):
  numbers = Numbers(np.arange(2100))
  first = joined(streams.Cached(Describer(), numbers, tmp_path, 'key'), 0, 2100)
  describer = Describer()
  again = streams.Cached(describer, numbers, tmp_path, 'key')
  assert_same(joined(again, 0, 2100, rows=1024), first)
  assert not describer.described
  # Of another key nothing is known.
  joined(streams.Cached(describer, numbers, tmp_path, 'other'), 0, 2100)
  assert describer.described == list(range(2100))


def test_a_killed_cache_goes_on_after_the_last_whole_unit(tmp_path):
  numbers, describer = Numbers(np.arange(2100)), Describer()
  plain = joined(streams.Described(Describer(), numbers), 0, 2100)
  describer.stop_after = 1500
  with pytest.raises(KeyboardInterrupt):
    joined(streams.Cached(describer, numbers, tmp_path, 'key'), 0, 2100)
  describer = Describer()
  cache = streams.Cached(describer, numbers, tmp_path, 'key')
  assert_same(joined(cache, 0, 2100), plain)
  assert describer.described == list(range(1024, 2100))


def test_some_images_are_read_anew_whatever_lies_above_them(tmp_path):
  numbers, index = Numbers(np.arange(2100)), np.array([3, 7, 1030, 2099])
  describer = Describer()
  kept = np.delete(np.arange(2100), [5, 1024])
  cache = streams.Cached(describer, numbers, tmp_path, 'key')
  whole = joined(cache, 0, 2100)
  for stream, places in (
    (streams.Described(describer, numbers), np.arange(2100)),
    (cache, np.arange(2100)),
    (streams.Within(cache, kept), kept),
  ):
    describer.described.clear()
    blocks = list(stream.again(index, 2))
    assert describer.described == index.tolist()
    assert [i for b in blocks for i, _ in b.bad] == [3, 1030]
    assert np.concatenate([b.index_n for b in blocks]).tolist() == [7, 2099]
    at_n = np.searchsorted(whole[0], [7, 2099])
    np.testing.assert_array_equal(
      np.concatenate([b.counts_nd for b in blocks]), whole[1][at_n]
    )
    inside = places[(places >= 4) & (places < 1030)]
    np.testing.assert_array_equal(stream.places(4, 1030), inside)


@pytest.mark.parametrize('rows', [7, 1024])
def test_one_block_is_all_of_them_joined(tmp_path, rows):
  numbers, describer = Numbers(np.arange(2100)), Describer()
  for stream in (
    streams.Described(describer, numbers),
    streams.Cached(describer, numbers, tmp_path, 'key'),
  ):
    block = stream.one_block(rows)
    found = block.index_n, block.counts_nd, block.bad
    assert_same(found, joined(stream, 0, 2100))
    assert block.stop == 2100


def test_one_block_of_no_images_has_no_rows():
  block = streams.Described(Describer(), Numbers([])).one_block()
  assert block.index_n.shape == (0,)
  assert block.counts_nd.shape == (0, 5)
  assert not block.bad


def test_what_could_not_be_read_is_tried_again(tmp_path):
  numbers = Numbers(np.arange(2100))
  describer = Describer(
    bad=(3,), reason='cannot be read now: stale file handle'
  )
  cache = streams.Cached(describer, numbers, tmp_path, 'key')
  assert len(joined(cache, 0, 2100)[0]) == 2099
  describer = Describer(bad=())
  cache = streams.Cached(describer, numbers, tmp_path, 'key')
  plain = joined(streams.Described(Describer(bad=()), numbers), 0, 2100)
  assert_same(joined(cache, 0, 2100), plain)
  assert describer.described == list(range(1024))


def test_a_unit_that_another_run_marked_stays_whole(tmp_path, monkeypatch):
  numbers = Numbers(np.arange(2100))
  describer = Describer(bad=(3,), reason='cannot be read now: stale')
  late = streams.Cached(describer, numbers, tmp_path, 'key')
  other = streams.Cached(Describer(bad=()), numbers, tmp_path, 'key')
  plain = joined(other, 0, 2100)
  # It looked before the other one had marked them.
  monkeypatch.setattr(late, '_has', lambda unit: False)
  assert len(joined(late, 0, 2100)[0]) == 2099
  again = streams.Cached(Describer(), numbers, tmp_path, 'key')
  assert_same(joined(again, 0, 2100), plain)


def test_what_is_no_cache_of_this_search_is_refused(tmp_path):
  streams.Cached(Describer(), Numbers(np.arange(2100)), tmp_path, 'key')
  with pytest.raises(UserError, match='cannot be opened as a cache of this'):
    streams.Cached(Describer(), Numbers(np.arange(9)), tmp_path, 'key')
