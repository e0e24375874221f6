import errno
import os
import pathlib
import zlib

import fsspec
import pytest

from sjft_jax import command, files, paths
from sjft_jax.errors import UserError
from tests import store


@pytest.mark.parametrize('text', ['a/b', '/a/b', 'a~/b', 'a:b/c', 'x.zip/a'])
def test_a_text_without_a_scheme_is_of_the_disk(text):
  assert paths.path(text) == pathlib.Path(text)
  assert not paths.in_store(paths.path(text))


def test_the_home_directory_may_be_a_tilde(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.path('~/a') == pathlib.Path('/home/me/a')


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_a_path_in_a_store_keeps_its_scheme(bucket, scheme):
  path = paths.path(f'{scheme}://b/run') / 'a' / 'x.json'
  assert paths.in_store(path)
  assert paths.path(path) is path
  assert str(path) == f'{scheme}://b/run/a/x.json'
  assert path.parent.name == 'a'


@pytest.mark.parametrize(
  'text',
  [
    'gs:/b/run',
    's3:b',
    's3://',
    's3:///run',
    's3://b/../other',
    's3://b/run/..',
    's3://b/*.zip',
    'memory://b/run',
    'https://b/run',
    pathlib.Path('s3://b/run'),
  ],
)
def test_what_is_neither_is_refused(bucket, text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='Needed a path of a disk, gs://BUCKET'):
    files.write_json(text, 1)
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(monkeypatch):
  def fail(scheme):
    raise ImportError(f'no {scheme}')

  monkeypatch.setattr(fsspec, 'get_filesystem_class', fail)
  paths._opened.cache_clear()
  with pytest.raises(
    UserError, match=r"gcsfs .*pip install .*'\.\[cloud\]'"
  ) as caught:
    paths.path('gs://b/run')
  assert '\n' not in str(caught.value)
  paths._opened.cache_clear()


def test_what_must_be_on_a_disk_is_refused_in_a_store(bucket, tmp_path):
  assert paths.on_disk(tmp_path, 'x') == tmp_path
  with pytest.raises(UserError, match='must lie on a disk'):
    paths.on_disk('s3://b/cache', 'search.cache')


def test_the_file_that_tells_a_directory_is_whole_comes_last(
  bucket, monkeypatch
):
  directory, seen = paths.path('s3://b/run/guard'), []
  files.write_json(directory / 'old.json', 1)
  put = store.Store.put_file

  def slow(self, local, key, **kwargs):
    seen.append(key.rpartition('/')[2])
    return put(self, local, key, **kwargs)

  monkeypatch.setattr(store.Store, 'put_file', slow)
  with files.building(directory, 'a.json') as beside:
    (beside / 'pairs').mkdir(parents=True)
    for name in ('a.json', 'b.csv', 'pairs/0.jpg'):
      (beside / name).write_bytes(b'x')
  assert seen == ['b.csv', '0.jpg', 'a.json']
  names = [name for name, _ in paths.below(directory)]
  assert names == ['a.json', 'b.csv', 'pairs/0.jpg']


def test_a_directory_is_copied_and_removed(bucket, tmp_path):
  for name in ('a', 'b/c'):
    files.write_json(paths.path('gs://b/run/one') / name, name)
  files.write_json('gs://b/run/one2', 0)
  files.copy_tree(paths.path('gs://b/run/one'), tmp_path / 'copy')
  assert files.read_json(tmp_path / 'copy/b/c') == 'b/c'
  for _ in range(2):
    paths.remove_tree(paths.path('gs://b/run/one'))
  assert [name for name, _ in paths.below(paths.path('gs://b'))] == ['run/one2']


def test_a_part_of_a_file_is_the_same_on_disk_and_in_a_store(bucket, tmp_path):
  (tmp_path / 'x').write_bytes(bytes(range(100)))
  store.fill(bucket, 'b', tmp_path)
  for path in (tmp_path / 'x', paths.path('s3://b/x')):
    assert paths.parts(path)(7, 3) == bytes([7, 8, 9])
    assert paths.parts(path)(98, 30) == bytes([98, 99])
    assert paths.reader(path.parent)('x') == bytes(range(100))
  assert files.digest('s3://b/x') == files.digest(tmp_path / 'x')


def test_what_is_not_there_is_told_from_a_store_that_is_silent(
  bucket, monkeypatch
):
  read = paths.reader(paths.path('s3://b/set'))
  with pytest.raises(FileNotFoundError):
    read('none.jpg')

  def fail(*args, **kwargs):
    raise TimeoutError('no answer\nat all')

  monkeypatch.setattr(store.Store, 'cat_file', fail)
  # An image that cannot be read is passed over; a network is no image.
  with pytest.raises(UserError, match=r'none\.jpg cannot be reached: Time'):
    read('none.jpg')


def test_no_more_of_an_image_is_asked_for_than_may_be(
  bucket, tmp_path, monkeypatch
):
  monkeypatch.setattr(paths, 'MAX_BYTES', 10)
  for name, size in (('empty', 0), ('most', 10), ('more', 5000)):
    (tmp_path / name).write_bytes(bytes(size))
  store.fill(bucket, 'b', tmp_path)
  asked, cat = [], store.Store.cat_file

  def counted(self, path, start=None, end=None):
    asked.append(end - start)
    if path.endswith('empty'):
      # A store has no byte 0 of it.
      raise OSError(errno.EINVAL, 'The requested range is not satisfiable')
    return cat(self, path, start, end)

  monkeypatch.setattr(store.Store, 'cat_file', counted)
  for root in (tmp_path, paths.path('s3://b')):
    read = paths.reader(root)
    assert read('most') == bytes(10)
    assert read('empty') == b''
    with pytest.raises(paths.DamagedError, match='larger than 10 bytes') as e:
      read('more')
    assert not paths.is_transient(e.value)
  assert set(asked) == {11}


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_not_the_fault_of_a_store(
  bucket, tmp_path, monkeypatch, capsys, number
):
  files.write_json('gs://b/run/a', 1)

  def full(self, key, local, **kwargs):
    raise OSError(number, os.strerror(number), str(local))

  monkeypatch.setattr(store.Store, 'get_file', full)
  root = paths.path('gs://b/run')
  assert command.guarded(files.copy_tree, root, tmp_path / 'copy') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{os.strerror(number)}: ' in line
  assert str(tmp_path / 'copy') in line
  assert 'cannot be reached' not in line


@pytest.mark.parametrize(
  ('error', 'passing'),
  [
    (OSError(errno.ESTALE, 'Stale file handle'), True),
    (PermissionError(errno.EACCES, 'Permission denied'), True),
    (FileNotFoundError(errno.ENOENT, 'No such file'), False),
    (NotADirectoryError(errno.ENOTDIR, 'Not a directory'), False),
    (paths.DamagedError(errno.EIO, 'damaged in the archive'), False),
  ],
)
def test_the_words_for_an_error_say_whether_it_may_pass(error, passing):
  assert paths.is_transient(error) == passing
  assert paths.may_pass(paths.why(error)) == passing
  assert error.strerror in paths.why(error)


def _raised(outer, inner, how):
  try:
    try:
      raise inner
    except Exception as error:
      if how == 'from':
        raise outer from error
      raise outer  # noqa: B904
  except Exception as error:
    return error


@pytest.mark.parametrize('how', ['from', 'meanwhile'])
def test_a_fault_of_the_disk_is_found_behind_one_of_the_content(how):
  theirs = type('Refused', (Exception,), {'__module__': 'botocore.exceptions'})
  for fault in (OSError(errno.EIO, 'x'), TimeoutError('x'), theirs('x')):
    assert paths.cause(fault) is fault
    assert paths.cause(_raised(zlib.error('x'), fault, how)) is fault
  for content in (OSError('x'), OSError(errno.EINVAL, 'x'), EOFError()):
    assert paths.cause(content) is None
    assert paths.cause(_raised(zlib.error('x'), content, how)) is None


def test_the_cache_is_the_users(monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.cache() == pathlib.Path('/home/me/.cache/sjft_jax')
  monkeypatch.setenv('XDG_CACHE_HOME', '/tmp/mine')
  assert paths.cache() == pathlib.Path('/tmp/mine/sjft_jax')


def test_what_packages_of_stores_raise_is_one_line(capsys):
  error = type('Refused', (Exception,), {'__module__': 'botocore.exceptions'})

  def work():
    raise error('no\ncredentials')

  assert command.guarded(work) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'Refused: no credentials' in line
