import struct

import numpy as np
import pytest

from sjft_jax.errors import UserError
from sjft_jax.formats import caffe_file
from tests.parity.caffe_bytes import blob, layer, part, varint

KERNEL = np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2)
BIAS = np.array([0.5, -2], np.float32)


def write(tmp_path, data):
  (tmp_path / 'x.caffemodel').write_bytes(data)
  return str(tmp_path / 'x.caffemodel')


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('double', [False, True])
def test_blobs_of_every_age_are_read(tmp_path, old, double):
  blobs = [blob(x, old, double) for x in (KERNEL, BIAS)]
  data = part(1, b'AlexNet') + layer('data', old=old)
  name, found = caffe_file.read(
    write(tmp_path, data + layer('conv1', *blobs, old=old))
  )
  assert name == 'AlexNet'
  assert list(found) == ['conv1/0', 'conv1/1']
  np.testing.assert_array_equal(found['conv1/0'], KERNEL)
  np.testing.assert_array_equal(found['conv1/1'].ravel(), BIAS)


def test_another_epsilon_is_refused(tmp_path):
  def epsilon(value):
    rest = part(139, b'\x1d' + struct.pack('<f', value))
    return write(tmp_path, layer('bn1', blob(BIAS), rest=rest))

  assert caffe_file.read(epsilon(1e-5))[1]
  with pytest.raises(UserError, match=r"'bn1' has eps 0\.001, not 1e-05"):
    caffe_file.read(epsilon(1e-3))


def test_a_part_of_a_file_gets_one_line(tmp_path):
  data = layer('conv1', blob(KERNEL), blob(BIAS))
  for length in range(len(data)):
    with pytest.raises(UserError, match=r'no \.caffemodel file') as caught:
      caffe_file.read(write(tmp_path, data[:length]))
    assert '\n' not in str(caught.value)


def test_a_damaged_file_is_read_or_gets_one_line(tmp_path):
  data = bytearray(layer('conv1', blob(KERNEL), blob(BIAS)))
  rng = np.random.default_rng(0)
  outcomes = set()
  for at in range(len(data)):
    kept, data[at] = data[at], rng.integers(256)
    try:
      caffe_file.read(write(tmp_path, data))
      outcomes.add('read')
    except UserError:
      outcomes.add('refused')
    data[at] = kept
  assert outcomes == {'read', 'refused'}


def test_a_shape_that_its_numbers_do_not_fill_is_refused(tmp_path):
  wrong = part(7, part(1, varint(2**62))) + part(5, bytes(8))
  with pytest.raises(UserError, match=r"'conv1' has 8 bytes for \[4611686"):
    caffe_file.read(write(tmp_path, layer('conv1', wrong)))


def test_absent_files_get_one_line(tmp_path):
  with pytest.raises(UserError, match='No such file'):
    caffe_file.read(str(tmp_path / 'absent'))
  with pytest.raises(UserError, match='directory'):
    caffe_file.read(str(tmp_path))
