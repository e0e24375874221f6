import dataclasses
import errno
import hashlib

import numpy as np
import pytest

from sjft_jax import paths
from sjft_jax.data import fingerprints, hashes, packaged
from sjft_jax.data.dataset import Dataset

COUNT = 10


def _set(files, name='main'):
  def read(i):
    if files[i] is None:
      raise FileNotFoundError(2, 'No such file')
    reads.append(i)
    return files[i]

  reads = []
  dataset = Dataset(
    name=name,
    classes=('a',),
    ids=np.array([f'{name}:{i}.png' for i in range(len(files))]),
    labels=np.zeros(len(files), np.int32),
    sizes=np.array([-1 if file is None else len(file) for file in files]),
    read=read,
  )
  return dataset, reads


@pytest.fixture
def images(monkeypatch):
  monkeypatch.setattr(hashes, 'PART', 4)
  monkeypatch.setattr(hashes, '_PROBES', 1)
  files = list(packaged.load('photographs').files[:COUNT])
  files[3], files[6] = b'no image', None
  return files


def _table(dataset, cache, start=0, stop=None):
  stop = len(dataset) if stop is None else stop
  return list(hashes.table(dataset, start, stop, cache, threads=2))


def _assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    for name, value in vars(a).items():
      np.testing.assert_array_equal(value, getattr(b, name))


def test_every_file_has_its_hashes(images, tmp_path):
  dataset, _ = _set(images)
  parts = _table(dataset, tmp_path)
  assert [part.start for part in parts] == [0, 4, 8]
  owner = np.concatenate([part.owner for part in parts])
  assert set(owner) == set(range(COUNT)) - {3, 6}
  for part in parts:
    for i, digest in enumerate(part.sha256, part.start):
      data = images[i]
      expected = hashlib.sha256(data).digest() if data else bytes(32)
      assert digest.tobytes() == expected
    for i, region, value in zip(
      part.owner, part.region, part.fingerprint, strict=True
    ):
      regions = fingerprints.regions(fingerprints.decode(images[i]))
      expected = fingerprints.fingerprint(regions[region])
      np.testing.assert_array_equal(value, expected)


def test_a_stored_table_is_read_not_made_again(images, tmp_path):
  first = _table(_set(images)[0], tmp_path)
  renamed, reads = _set(images, name='imagenet')
  _assert_same(first, _table(renamed, tmp_path))
  assert set(reads) <= {0, 4, 8}  # The probes.


def test_a_table_that_is_damaged_is_made_anew(images, tmp_path):
  first = _table(_set(images)[0], tmp_path)
  (table,) = tmp_path.iterdir()
  for data in (b'', b'no archive', (table / '000000004.npz').read_bytes()[:99]):
    (table / '000000004.npz').write_bytes(data)
    again, reads = _set(images)
    _assert_same(first, _table(again, tmp_path))
    assert {4, 5, 7} <= set(reads)
  assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_was_written_since_is_hashed_anew(images, tmp_path):
  before, _ = _set(images)
  stamped = dataclasses.replace(before, stamps=('then',))
  _table(stamped, tmp_path)
  # Of equal size, and none of those that are read to compare.
  changed = list(images)
  changed[5] = images[5][::-1]
  other, _ = _set(changed)
  other = dataclasses.replace(other, stamps=('now',))
  _assert_same(
    _table(other, tmp_path), _table(_set(changed)[0], tmp_path / 'x')
  )


def test_what_was_damaged_and_is_mended_is_hashed_anew(images, tmp_path):
  whole, _ = _set(images)

  def read(i):
    if i == 5:
      raise paths.DamagedError(errno.EIO, 'damaged in the archive')
    return whole.read(i)

  _table(dataclasses.replace(whole, read=read), tmp_path)
  _assert_same(_table(whole, tmp_path), _table(whole, tmp_path / 'x'))


def test_what_could_not_be_read_is_tried_again(images, tmp_path):
  dataset, _ = _set(images)

  def stale(i):
    if i == 9:
      raise OSError(116, 'Stale file handle')
    return dataset.read(i)

  silent = _table(dataclasses.replace(dataset, read=stale), tmp_path)
  assert 9 not in silent[2].owner
  again, reads = _set(images)
  assert 9 in _table(again, tmp_path)[2].owner
  assert set(reads) <= {0, 4, 8, 9}  # That part, and the probes.


def test_a_killed_table_goes_on_with_the_next_part(images, tmp_path):
  whole = _table(_set(images)[0], tmp_path / 'whole')
  dataset, _ = _set(images)
  stream = hashes.table(dataset, 0, COUNT, tmp_path / 'killed', threads=1)
  next(stream)
  stream.close()
  again, reads = _set(images)
  _assert_same(whole, _table(again, tmp_path / 'killed'))
  assert set(reads) - {0} == {*range(4, COUNT)} - {6}


def test_other_files_of_equal_names_and_sizes_are_hashed_anew(images, tmp_path):
  _table(_set(images)[0], tmp_path)
  other = [file and file[::-1] for file in images]
  changed, _ = _set(other)
  _assert_same(
    _table(changed, tmp_path), _table(_set(other)[0], tmp_path / 'x')
  )


def test_what_others_store_meanwhile_is_not_taken_for_ones_own(
  images, tmp_path
):
  # They have the same names and sizes.
  mine, _ = _set([file and file[::-1] for file in images])
  expected = _table(mine, tmp_path / 'alone')
  stream = hashes.table(mine, 0, COUNT, tmp_path / 'shared', threads=1)
  first = next(stream)
  _table(_set(images)[0], tmp_path / 'shared')
  _assert_same([first, *stream], expected)


def test_a_source_in_a_pool_has_positions_of_the_pool(images, tmp_path):
  alone = _table(_set(images[4:])[0], tmp_path / 'alone')
  ranged = _table(_set(images)[0], tmp_path / 'pool', start=4)
  for a, b in zip(alone, ranged, strict=True):
    assert b.start == a.start + 4
    np.testing.assert_array_equal(b.owner, a.owner + 4)
    np.testing.assert_array_equal(b.fingerprint, a.fingerprint)
