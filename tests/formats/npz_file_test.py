import pathlib

import numpy as np
import pytest

from sjft_jax.errors import UserError
from sjft_jax.formats import npz_file


def refused(path, match='no .npz file of plain arrays'):
  with pytest.raises(UserError, match=match) as caught:
    npz_file.read(str(path))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_come_back_and_parts_are_refused(tmp_path, save):
  value = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  path = tmp_path / 'x.npz'
  save(path, **{'conv1/W': value, 'conv1/b': np.arange(3)})
  found = npz_file.read(str(path))
  assert list(found) == ['conv1/W', 'conv1/b']
  np.testing.assert_array_equal(found['conv1/W'], value)
  data = path.read_bytes()
  cut = tmp_path / 'cut.npz'
  for length in range(0, len(data), 5):
    cut.write_bytes(data[:length])
    refused(cut)


def test_a_damaged_file_is_read_or_gets_one_line(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez_compressed(path, x=np.random.default_rng(0).normal(size=9))
  data = bytearray(path.read_bytes())
  rng = np.random.default_rng(0)
  outcomes = set()
  for at in range(len(data)):
    kept, data[at] = data[at], rng.integers(256)
    path.write_bytes(data)
    data[at] = kept
    try:
      npz_file.read(str(path))
      outcomes.add('read')
    except UserError:
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


def test_other_files_are_refused(tmp_path):
  refused(tmp_path / 'absent.npz', 'No such file')
  refused(tmp_path, 'directory')
  (tmp_path / 'text').write_text('weights')
  refused(tmp_path / 'text')
  np.save(tmp_path / 'one.npy', np.zeros(3))
  refused(tmp_path / 'one.npy')


def test_objects_are_not_unpickled(tmp_path):
  np.savez(tmp_path / 'x.npz', x=np.array([pathlib.Path()]))
  refused(tmp_path / 'x.npz')


def test_bombs_are_refused(tmp_path):
  np.savez_compressed(tmp_path / 'x.npz', x=np.zeros(10**6))
  refused(tmp_path / 'x.npz', 'grow more than 100 x')
