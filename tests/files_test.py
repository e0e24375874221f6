import csv
import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from sjft_jax import files, paths
from sjft_jax.errors import UserError


@pytest.mark.parametrize('root', ['', 's3://b/run'])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
  tmp_path, bucket, root
):
  path = paths.path(root or tmp_path / 'run') / 'value.json'
  files.write_json(path, {'é': [1]})

  def fail():
    with files.replacing(path) as file:
      file.write(b'half')
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  assert files.read_json(path) == {'é': [1]}
  assert [name for name, _ in paths.below(path.parent)] == ['value.json']


def test_what_a_killed_write_left_is_cleared_away(tmp_path):
  # os._exit skips every clean-up, as kill -9 does.
  code = (
    'import os, sys; from sjft_jax import files; '
    'a = files.replacing(sys.argv[1] + "/a.json"); a.__enter__(); '
    'd = files.building(sys.argv[1] + "/d", "x"); part = d.__enter__(); '
    'part.mkdir(); (part / "old").touch(); os._exit(9)'
  )
  subprocess.run([sys.executable, '-c', code, tmp_path], check=False)
  assert len(list(tmp_path.iterdir())) == 2
  files.write_json(tmp_path / 'a.json', 1)
  with files.building(tmp_path / 'd', 'x') as beside:
    beside.mkdir()
  assert sorted(p.name for p in tmp_path.rglob('*')) == ['a.json', 'd']


def test_of_two_that_write_the_same_file_each_leaves_it_whole(
  tmp_path, monkeypatch
):
  path = tmp_path / 'cache.json'
  with files.replacing(path, 'w', shared=True) as first:
    first.write('[1, ')
    with monkeypatch.context() as patch:
      patch.setattr(os, 'getpid', lambda: 1)
      files.write_json(path, [2], shared=True)
    assert files.read_json(path) == [2]
    first.write('1]')
  assert files.read_json(path) == [1, 1]
  assert [p.name for p in tmp_path.iterdir()] == ['cache.json']


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
  path = tmp_path / 'new' / 'table.csv'
  with files.replacing(path, 'w') as file:
    file.write('a\n')
    assert not path.exists()
  assert path.read_text() == 'a\n'


def test_a_digest_is_of_the_content(tmp_path):
  (tmp_path / 'a').write_bytes(b'abc')
  # FIPS 180-2, appendix B.1.
  assert files.digest(tmp_path / 'a').startswith('ba7816bf8f01cfea')
  with pytest.raises(UserError, match='none cannot be read'):
    files.digest(tmp_path / 'none')


@pytest.mark.parametrize('root', ['', 's3://b/run'])
def test_tables_and_arrays_come_back(tmp_path, bucket, root):
  directory = paths.path(root or tmp_path / 'run')
  rows = [('a "b",\nc', 1.5), ('é', None)]
  files.write_csv(directory / 'x.csv', ('name', 'n'), iter(rows))
  written = paths.read(directory / 'x.csv').decode()
  assert written == 'name,n\r\n"a ""b"",\nc",1.5\r\né,\r\n'
  with files.opened_text(directory / 'x.csv') as file:
    assert list(csv.reader(file))[1:] == [['a "b",\nc', '1.5'], ['é', '']]
  with files.replacing(directory / 'x.npz') as file:
    np.savez(file, a=[1, 2], b=['é'])
  found = files.read_npz(directory / 'x.npz')
  assert {k: v.tolist() for k, v in found.items()} == {'a': [1, 2], 'b': ['é']}


def test_nothing_is_unpickled(tmp_path):
  np.savez(tmp_path / 'x.npz', a=np.array([{}], object))
  with pytest.raises(ValueError, match='allow_pickle=False'):
    files.read_npz(tmp_path / 'x.npz')


def test_a_value_that_is_missing_is_the_default_where_one_is_given(tmp_path):
  assert files.read_json(tmp_path / 'none.json', None) is None
  with pytest.raises(FileNotFoundError):
    files.read_json(tmp_path / 'none.json')
  files.write_json(tmp_path / 'null.json', None)
  assert files.read_json(tmp_path / 'null.json', 1) is None


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_keeps_nobody_out(
  tmp_path, monkeypatch, number
):
  def flock(*args):
    raise OSError(number, os.strerror(number))

  with files.locked(tmp_path, 'busy'):
    with (
      pytest.raises(UserError, match='busy'),
      files.locked(tmp_path, 'busy'),
    ):
      pytest.fail('two hold it')
    monkeypatch.setattr(files.fcntl, 'flock', flock)
    with files.locked(tmp_path, 'busy'):
      pass
