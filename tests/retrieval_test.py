import dataclasses

import jax
import numpy as np
import pytest

from configs import folders
from sjft_jax import certificate, mesh, retrieval, search
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


def find(c, target, source, directory):
  one = mesh.make(jax.devices()[:1])
  found = retrieval.find(c, target, source, directory, mesh=one)
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


def test_edges_and_shards_of_another_search_are_not_gone_on_with(
  sets, tmp_path, monkeypatch
):
  source, targets = sets
  c, run = settings(), tmp_path / 'run'

  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(search, 'nearest', stop)
    with pytest.raises(KeyboardInterrupt):
      find(c, targets[0], source, run)
  edges = (run / 'edges.npz').read_bytes()
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


def test_a_batch_may_be_larger_than_a_block(sets, tmp_path, monkeypatch):
  source, targets = sets
  found = find(settings(), targets[0], source, tmp_path / 'a')
  monkeypatch.setattr(search, 'ROWS', 8)
  large = settings(describe__batch=100)
  again = find(large, targets[0], source, tmp_path / 'b')
  np.testing.assert_array_equal(again[0], found[0])


@pytest.mark.parametrize('fine', [0, 16])
def test_another_target_reads_no_source_image(sets, tmp_path, fine):
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
  silent = withheld(dataclasses.replace(source, read=None), 1)
  second = settings(**changes)
  found = find(second, targets[1], silent, tmp_path / 'second')
  assert not set(WITHHELD[1]) & set(silent.place[found[0]].ravel())
  if not fine:
    again = settings(describe__edges=edges)
    expected = find(again, targets[1], withheld(source, 1), tmp_path / 'third')
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
