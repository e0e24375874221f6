"""A store of objects for tests: fsspec over a directory, no network.

It can do what gs:// and s3:// can and no more: objects appear whole or not at
all, there is no appending and no renaming, and a directory is there as long as
an object lies below it. Several processes may share it.
"""

import io
import os
import pathlib
import urllib.parse
import uuid

import fsspec

ROOT = 'SJFT_JAX_TEST_STORE'


class Store(fsspec.AbstractFileSystem):
  """Objects as files of one flat directory, named by their quoted keys."""

  protocol = ('s3', 'gs', 'gcs')

  @property
  def _root(self):
    return pathlib.Path(os.environ[ROOT])

  def _file(self, key):
    return self._root / urllib.parse.quote(key, safe='')

  def _keys(self):
    names = (n for n in os.listdir(self._root) if not n.startswith('%part'))
    return sorted(map(urllib.parse.unquote, names))

  def info(self, path, **kwargs):
    key = self._strip_protocol(path)
    if self._file(key).exists():
      size = self._file(key).stat().st_size
      return {'name': key, 'size': size, 'type': 'file'}
    if any(k.startswith(f'{key}/') for k in self._keys()):
      return {'name': key, 'size': 0, 'type': 'directory'}
    raise FileNotFoundError(path)

  def ls(self, path, detail=True, **kwargs):
    key = self._strip_protocol(path)
    inside = [k for k in self._keys() if k.startswith(f'{key}/')]
    names = {f'{key}/{k[len(key) + 1 :].partition("/")[0]}' for k in inside}
    if not names:
      names = {self.info(path)['name']}
    return sorted(names) if not detail else [self.info(n) for n in names]

  def _open(self, path, mode='rb', **kwargs):
    if mode == 'rb':
      return io.BytesIO(self._file(self._strip_protocol(path)).read_bytes())
    raise NotImplementedError(f'{mode}: objects are put whole.')

  def put_file(self, lpath, rpath, **kwargs):
    key = self._strip_protocol(rpath)
    part = self._root / f'%part{uuid.uuid4()}'
    part.write_bytes(pathlib.Path(lpath).read_bytes())
    os.replace(part, self._file(key))

  def _rm(self, path):
    self._file(self._strip_protocol(path)).unlink(missing_ok=True)

  def rm(self, path, recursive=False, **kwargs):
    for key in self.expand_path(path, recursive=recursive):
      self._rm(key)


def register():
  """Has fsspec, and with it epath, take this store for gs:// and s3://."""
  for scheme in Store.protocol:
    fsspec.register_implementation(scheme, Store, clobber=True)


def unpack(root, scheme_and_bucket, directory):
  """Copies all objects of a bucket into a directory of the disk."""
  bucket = scheme_and_bucket.partition('://')[2]
  for name in os.listdir(root):
    key = urllib.parse.unquote(name)
    if key.startswith(f'{bucket}/'):
      path = pathlib.Path(directory, key.removeprefix(f'{bucket}/'))
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes((pathlib.Path(root) / name).read_bytes())


def fill(root, bucket, directory):
  """Puts all files of a directory into a bucket."""
  for path in pathlib.Path(directory).rglob('*'):
    if path.is_file():
      key = f'{bucket}/{path.relative_to(directory).as_posix()}'
      name = urllib.parse.quote(key, safe='')
      (pathlib.Path(root) / name).write_bytes(path.read_bytes())
