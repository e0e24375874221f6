import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from sjft_jax.errors import UserError
from sjft_jax.formats import torch_file

PARITY = pathlib.Path(__file__).parent.parent / 'parity'
FILES = PARITY / 'new.pth', PARITY / 'old.pth'


def refused(path, match):
  with pytest.raises(UserError, match=match) as caught:
    torch_file.read(str(path))
  assert '\n' not in str(caught.value)


def archive(path, instructions, compression=zipfile.ZIP_STORED, **storages):
  with zipfile.ZipFile(path, 'w', compression) as file:
    file.writestr('x/data.pkl', instructions)
    for key, data in storages.items():
      file.writestr(f'x/data/{key.strip("_")}', data)
  return path


class Storage:
  """What pickles as a reference to a storage."""

  def __init__(self, *persistent):
    self.persistent = persistent


class Call:
  """What pickles as a call of a function."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


class _Pickler(pickle.Pickler):
  def persistent_id(self, value):
    return value.persistent if isinstance(value, Storage) else None


def instructions(value, renamed=()):
  """Instructions of pickle, in which names were changed for others."""
  stream = io.BytesIO()
  _Pickler(stream, protocol=2).dump(value)
  data = stream.getvalue()
  for before, after in dict(renamed).items():
    data = data.replace(before, after)
  return data


def rebuild(*arguments):
  """Stands for torch's function, whose name it gets in the instructions."""


def kind():
  """Stands for torch.FloatStorage."""


NAMES = {
  f'c{__name__}\nrebuild\n'.encode(): b'ctorch._utils\n_rebuild_tensor_v2\n',
  f'c{__name__}\nkind\n'.encode(): b'ctorch\nFloatStorage\n',
}


def tensor(length=4, offset=0, size=(2, 2), stride=(2, 1)):
  storage = Storage('storage', kind, '0', 'cpu', length)
  call = Call(rebuild, storage, offset, size, stride, False, {})
  return instructions({'x': call}, NAMES)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_tensors_are_those_that_torch_wrote(path):
  found = torch_file.read(str(path))
  expected = np.load(PARITY / 'pth.npz')
  assert set(found) == set(expected.files)
  for name, value in found.items():
    assert value.shape == expected[name].shape
    np.testing.assert_array_equal(value.astype(np.float64), expected[name])
  assert found['0.weight'].dtype == np.float32
  assert found['1.num_batches_tracked'].dtype == np.int64


def test_safetensors_of_timm_are_read(tmp_path):
  path = tmp_path / 'model.safetensors'
  save_file({'fc.bias': np.arange(3.0)}, path)
  np.testing.assert_array_equal(
    torch_file.read(str(path))['fc.bias'], np.arange(3.0)
  )


def test_a_checkpoint_of_a_training_is_read(tmp_path):
  storage = Storage('storage', kind, '0', 'cpu', 4)
  call = Call(rebuild, storage, 0, (2, 2), (2, 1), False, {})
  state = {'state': {0: {'momentum_buffer': call}}, 'param_groups': [{}]}
  saved = {'epoch': 3, 'state_dict': {'w': call}, 'optimizer': state}
  data = np.arange(4, dtype='<f4').tobytes()
  path = archive(tmp_path / 'x.pth', instructions(saved, NAMES), _0=data)
  found = torch_file.read(str(path))
  np.testing.assert_array_equal(found['w'], [[0, 1], [2, 3]])


def test_parts_that_overlap_are_refused(tmp_path):
  path = archive(tmp_path / 'x.pth', tensor(), _0=bytes(16), _1=bytes(10_000))
  data = bytearray(path.read_bytes())
  # Of the first, the list says that it reaches over what follows.
  at = data.index(b'PK\x01\x02', data.index(b'PK\x01\x02') + 4)
  for field in (20, 24):
    data[at + field : at + field + 4] = (10_100).to_bytes(4, 'little')
  path.write_bytes(data)
  refused(path, 'overlap')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_part_of_a_file_gets_one_line(tmp_path, path):
  data = path.read_bytes()
  cut = tmp_path / 'cut.pth'
  for length in range(0, len(data), 7):
    cut.write_bytes(data[:length])
    refused(cut, 'no file of torch weights')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_damaged_file_is_read_or_gets_one_line(tmp_path, path):
  data = bytearray(path.read_bytes())
  rng = np.random.default_rng(0)
  damaged = tmp_path / 'damaged.pth'
  outcomes = set()
  for at in rng.choice(len(data), 300, replace=False):
    kept, data[at] = data[at], rng.integers(256)
    damaged.write_bytes(data)
    data[at] = kept
    try:
      torch_file.read(str(damaged))
      outcomes.add('read')
    except UserError:
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


def test_nothing_that_a_file_names_is_called(tmp_path):
  witness = tmp_path / 'witness'
  evil = instructions({'x': Call(os.system, f'touch {witness}')})
  # The instructions do what they say when they are unpickled.
  pickle.loads(evil)
  assert witness.exists()
  witness.unlink()
  refused(archive(tmp_path / 'new.pth', evil), r'refers to posix\.system')
  (tmp_path / 'old.pth').write_bytes(evil)
  refused(tmp_path / 'old.pth', r'refers to posix\.system')
  assert not witness.exists()


@pytest.mark.parametrize('protocol', range(6))
def test_other_objects_are_refused(tmp_path, protocol):
  for value in (pathlib.Path(), {'x': {1, 2}}, [1, 2], 3, {}, {'x': 1}, 'x'):
    data = pickle.dumps(value, protocol)
    refused(archive(tmp_path / 'new.pth', data), 'no file of torch weights')


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'length': 5}, 'cut short'),
    ({'offset': 1}, 'past its storage'),
    ({'offset': -1}, 'no such shape'),
    ({'size': (2, 3)}, 'past its storage'),
    ({'size': (-2, 2)}, 'no such shape'),
    ({'size': (2, 2, 2)}, 'no such shape'),
    ({'stride': (3, 1)}, 'past its storage'),
    ({'stride': (-2, 1)}, 'no such shape'),
    # Much of little.
    ({'size': (10**6, 10**6), 'stride': (0, 0)}, 'past its storage'),
    ({'size': ('2', 2)}, 'or a part of one'),
  ],
)
def test_a_tensor_stays_within_its_storage(tmp_path, change, match):
  path = tmp_path / 'x.pth'
  numbers = np.arange(4, dtype='<f4')
  archive(path, tensor(), _0=numbers.tobytes())
  np.testing.assert_array_equal(
    torch_file.read(str(path))['x'], numbers.reshape(2, 2)
  )
  refused(archive(path, tensor(**change), _0=numbers.tobytes()), match)


def test_bombs_are_refused(tmp_path):
  path = tmp_path / 'x.pth'
  archive(path, tensor(), zipfile.ZIP_DEFLATED, _0=bytes(16))
  refused(path, 'compressed')
  # Tuples of one another, of 2^60 parts when they are printed or hashed; as
  # the key of a dictionary, of a storage, as a name and as a storage.
  nested = b'\x80\x02K\x01' + b'q\x00h\x00\x86' * 60
  for data in (
    b'}' + nested[2:] + b'K\x01s.',
    b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\n'
    + nested[2:]
    + b'X\x03\x00\x00\x00cpuK\x04tQ.',
    nested[2:] + b'X\x01\x00\x00\x00x\x93.',
    b'ctorch._utils\n_rebuild_tensor_v2\n(' + nested[2:] + b'K\x00))tR.',
  ):
    refused(archive(path, b'\x80\x02' + data), 'no file of torch weights')


def test_absent_files_get_one_line(tmp_path):
  refused(tmp_path / 'absent.pth', 'No such file')
  refused(tmp_path, 'directory')
