import dataclasses
import errno
import shutil

import jax
import numpy as np
import pytest

from configs import folders
from sjft_jax import certificate, machine, mesh, retrieval, search
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from tests import small

# Of each of two targets, source images that repeat its test images.
WITHHELD = ((3, 40, 41), (0, 119))


@pytest.fixture(autouse=True)
def colours(monkeypatch):
  """Nothing here depends on the bank."""
  small.bank(monkeypatch.setattr)


@pytest.fixture(scope='module')
def sets():
  whole = datasets.open_pool({'s': {'kind': 'packaged', 'name': 'digits'}})
  read = whole.read

  def broken(i):
    return b'no image' if i in (40, 60) else read(i)

  source = dataclasses.replace(whole, read=broken).subset(np.arange(120))
  targets = [whole.subset(np.arange(at, at + 9)) for at in (500, 700)]
  return source, targets


def settings(**changes):
  c = folders.get_config()
  c.threads = 1
  c.describe.resize = c.describe.crop = 16
  c.describe.bins = 4
  c.budget.initial, c.budget.maximum = 3, 7
  for name, value in changes.items():
    group, field = name.split('__')
    c[group][field] = value
  return c


def find(c, target, source, directory, donors=()):
  one = mesh.make(jax.devices()[:1])
  found = retrieval.find(c, target, source, directory, mesh=one, donors=donors)
  return found.index_qk, found.unreadable, certificate.read(directory)


def withheld(source, which):
  return source.without(source.ids[list(WITHHELD[which])])


def test_withheld_images_are_as_if_they_were_not_there(sets, tmp_path):
  source, targets = sets
  c = settings(search__cache=str(tmp_path / 'cache'))
  left = withheld(source, 0)
  found = find(c, targets[0], left, tmp_path / 'a')
  # The same images, as a set that knows of no others.
  plain = left.subset(np.arange(len(left)))
  assert plain.whole is None
  expected = find(settings(), targets[0], plain, tmp_path / 'b')
  np.testing.assert_array_equal(found[0], expected[0])
  assert found[1:] == expected[1:]
  assert list(found[1]) == ['s:0060']
  assert found[2]['source_images_seen'] == 117


def begun(c, target, source, run, monkeypatch):
  """The edges of a search that is killed before its first shard."""

  def killed(*args, **settings):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(search, 'nearest', killed)
    with pytest.raises(KeyboardInterrupt):
      find(c, target, source, run)
  return (run / 'edges.npz').read_bytes()


def test_edges_and_shards_of_another_search_are_not_gone_on_with(
  sets, tmp_path, monkeypatch
):
  source, targets = sets
  c, run = settings(), tmp_path / 'run'
  edges = begun(c, targets[0], source, run, monkeypatch)
  other = settings(describe__activation='before')
  for changed, build in ((other, search.BUILD), (c, search.BUILD + 1)):
    with monkeypatch.context() as patch:
      patch.setattr(search, 'BUILD', build)
      with pytest.raises(UserError, match='of another build'):
        find(changed, targets[0], source, run)
  found = find(c, targets[0], source, run)
  assert (run / 'edges.npz').read_bytes() == edges
  assert not (run / 'begun.json').exists()
  with pytest.raises(UserError, match='holds a search of other images'):
    find(other, targets[0], source, run)
  # What nothing is known of is begun anew.
  (run / 'certificate.json').unlink()
  (run / 'edges.npz').write_bytes(b'')
  again = find(c, targets[0], source, run)
  np.testing.assert_array_equal(again[0], found[0])


@pytest.fixture
def damaged(sets, tmp_path):
  """Yields copies of a finished search, each with a file that has changed."""
  source, targets = sets
  find(settings(), targets[0], source, tmp_path / 'whole')

  def copies():
    for name in (certificate.NAME, *certificate.FILES):
      for place in (0, 0.6):
        directory = tmp_path / f'{name}-{place}'
        shutil.copytree(tmp_path / 'whole', directory)
        content = bytearray((directory / name).read_bytes())
        content[int(place * len(content))] ^= 1
        (directory / name).write_bytes(content)
        yield directory, name

  return copies()


def test_a_damaged_search_is_not_trained_on(sets, damaged):
  source, targets = sets
  for directory, name in damaged:
    with pytest.raises(UserError, match='is not as the search wrote it') as why:
      find(settings(), targets[0], source, directory)
    assert f'{directory / name} is not' in str(why.value)


def test_a_damaged_search_is_not_taken_over(sets, damaged, tmp_path):
  source, targets = sets
  for donor, _ in damaged:
    with pytest.raises(UserError, match='is not as the search wrote it'):
      find(settings(), targets[0], source, tmp_path / 'new', donors=[donor])
    assert not (tmp_path / 'new').exists()
  taken = tmp_path / 'whole'
  found = find(settings(), targets[0], source, tmp_path / 'new', [taken])
  assert found[2] == certificate.read(taken)
  # One of other images may be as it likes.
  donor = tmp_path / f'{certificate.FILES[0]}-0'
  other = find(settings(), targets[1], source, tmp_path / 'other', [donor])
  assert other[2]['key'] != found[2]['key']


def test_every_source_is_seen_once_or_nothing_is_certified(
  sets, tmp_path, monkeypatch
):
  source, targets = sets
  parts = dataclasses.replace(
    source,
    sources=('a', 'b'),
    source=(np.arange(120) >= 50).astype(np.int32),
  )
  found = find(settings(), targets[0], withheld(parts, 0), tmp_path / 'a')
  assert found[2]['sources'] == {
    'a': {'images': 47, 'seen_once': 47, 'unreadable': 0},
    'b': {'images': 70, 'seen_once': 70, 'unreadable': 1},
  }
  nearest = search.nearest
  for place, times in ((7, 0), (119, 2)):

    def wrong(*args, place=place, times=times, **kwargs):
      found = nearest(*args, **kwargs)
      found.times_s[place] = times
      return found

    monkeypatch.setattr(search, 'nearest', wrong)
    with pytest.raises(RuntimeError, match='saw 119 of 120 source images once'):
      find(settings(), targets[0], source, tmp_path / 'b')
    assert not (tmp_path / 'b' / certificate.NAME).exists()


def test_where_nothing_was_left_out_no_target_has_the_smallest_margin(
  sets, tmp_path
):
  source, targets = sets
  c = settings(budget__depth=120)
  _, _, value = find(c, targets[0], source, tmp_path)
  assert value['smallest_margin_nats'] is None
  assert value['smallest_margin_target'] is None


def test_an_outage_of_the_source_is_gone_when_its_disk_is_back(
  sets, tmp_path, monkeypatch
):
  source, targets = sets
  grid = [(0, 40), (40, 80), (80, 120)]
  monkeypatch.setattr(search, '_grid', lambda *args: grid)
  expected = find(settings(), targets[0], source, tmp_path / 'a')

  def stale(i):
    if i in range(52, 68):  # None by which the set is known.
      raise OSError(errno.ESTALE, 'Stale file handle')
    return source.read(i)

  away = dataclasses.replace(source, read=stale)
  run = tmp_path / 'b'
  with pytest.raises(UserError, match=r's:0052 among .* then give the same'):
    find(settings(), targets[0], away, run)
  shards = sorted(path.name for path in (run / 'shards').glob('*.npz'))
  assert shards == ['shard-0-40.npz']
  found = find(settings(), targets[0], source, run)
  np.testing.assert_array_equal(found[0], expected[0])
  assert found[1:] == expected[1:]
  # Whoever has lost them says so.
  c = settings()
  c.max_bad_fraction = 0.5
  assert len(find(c, targets[0], away, tmp_path / 'c')[1]) == 17


def test_what_holds_no_shard_yet_begins_anew_on_another_machine(
  sets, tmp_path, monkeypatch
):
  source, (target, _) = sets
  c, run = settings(), tmp_path / 'run'
  edges = begun(c, target, source, run, monkeypatch)
  (run / 'edges.npz').write_bytes(b'of a machine that rounds otherwise')
  other = machine.described() | {'processor': 'Abacus 9'}
  with monkeypatch.context() as patch:
    patch.setattr(machine, 'described', lambda: other)
    find(c, target, source, run)
  assert (run / 'edges.npz').read_bytes() == edges


def test_caches_of_two_kinds_of_machine_lie_side_by_side(
  sets, tmp_path, monkeypatch
):
  source, (target, _) = sets
  c = settings(search__cache=str(tmp_path / 'cache'))
  for at, processor in enumerate(('Abacus 9', 'Abacus 9', 'Comptometer')):
    other = machine.described() | {'processor': processor}
    with monkeypatch.context() as patch:
      patch.setattr(machine, 'described', lambda other=other: other)
      find(c, target, source, tmp_path / str(at))
    kept = list((tmp_path / 'cache').iterdir())
    assert len(kept) == (1, 1, 2)[at]


def test_a_batch_may_be_larger_than_a_block(sets, tmp_path, monkeypatch):
  source, targets = sets
  found = find(settings(), targets[0], source, tmp_path / 'a')
  monkeypatch.setattr(search, 'ROWS', 8)
  large = settings(describe__batch=100)
  again = find(large, targets[0], source, tmp_path / 'b')
  np.testing.assert_array_equal(again[0], found[0])


@pytest.mark.parametrize('fine', [0, 16])
def test_another_target_describes_no_source_image(sets, tmp_path, fine):
  """Though the guard withholds other images for it."""
  source, targets = sets
  changes = {
    'search__cache': str(tmp_path / 'cache'),
    'describe__fine_bins': fine,
  }
  find(settings(**changes), targets[0], withheld(source, 0), tmp_path / 'first')
  if not fine:
    edges = str(tmp_path / 'first' / 'edges.npz')
    changes['describe__edges'] = edges
  reads = set()

  def read(i):
    reads.add(i)
    return source.read(i)

  silent = withheld(dataclasses.replace(source, read=read), 1)
  second = settings(**changes)
  found = find(second, targets[1], silent, tmp_path / 'second')
  # But those by which the whole, and what is left of it, are known.
  assert len(reads) <= 16 < len(source) / 4
  assert not set(WITHHELD[1]) & set(silent.place[found[0]].ravel())
  if not fine:
    again = settings(describe__edges=edges)
    expected = find(again, targets[1], withheld(source, 1), tmp_path / 'third')
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
