import concurrent.futures
import errno
import io
import os
import sys
import tarfile
import tracemalloc
import zipfile

import indexed_gzip
import numpy as np
import pytest

from sjft_jax import errors, paths
from sjft_jax.data import datasets, packs
from tests import store
from tests.data import faults

KINDS = ('zip', 'tar', 'tar.gz', 'tgz')


def _write(path, content):
  """An archive of {name: bytes}, as its suffix says."""
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, data in content.items():
        archive.writestr(name, data)
    return
  mode = 'w' if path.suffix == '.tar' else 'w:gz'
  with tarfile.open(path, mode) as archive:
    for name, data in content.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope='module')
def content():
  """Files of 1 to 40,000 bytes that do not compress; not in sorted order."""
  rng = np.random.default_rng(0)
  names = [f'{c}/{i}.jpg' for i in range(20) for c in 'bac'] + ['a/x/1.png']
  return {name: rng.bytes(int(rng.integers(1, 40_000))) for name in names}


def _pool(path):
  return datasets.open_pool({'main': {'dir': str(path)}})


def _folder(root, content):
  for name, data in content.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
  return root


@pytest.mark.parametrize('kind', KINDS)
def test_an_archive_is_the_folder_it_was_made_of(tmp_path, content, kind):
  plain = _pool(_folder(tmp_path / 'folder', content))
  extra = {'README': b'x', '.git/1.jpg': b'x', 'a/.2.jpg': b'x'}
  _write(tmp_path / f'x.{kind}', content | extra)
  packed = _pool(tmp_path / f'x.{kind}')
  assert packed.digest == plain.digest
  assert packed.ids.tolist() == plain.ids.tolist()
  order = np.random.default_rng(1).permutation(len(packed)).tolist()
  with concurrent.futures.ThreadPoolExecutor(4) as executor:
    read = list(executor.map(packed.read, order * 3))
  assert read == [plain.read(i) for i in order * 3]
  assert sorted(os.listdir(tmp_path)) == ['folder', f'x.{kind}']


@pytest.mark.parametrize('kind', KINDS)
def test_an_archive_in_a_store_is_the_one_on_disk(
  tmp_path, bucket, content, kind
):
  _write(tmp_path / f'x.{kind}', {f'set/{k}': v for k, v in content.items()})
  store.fill(bucket, 'b', tmp_path)
  plain = _pool(tmp_path / f'x.{kind}' / 'set')
  packed = _pool(f's3://b/x.{kind}/set')
  assert packed.digest == plain.digest
  with concurrent.futures.ThreadPoolExecutor(4) as executor:
    read = list(executor.map(packed.read, range(len(packed))))
  assert read == [plain.read(i) for i in range(len(plain))]


def test_members_of_every_method_of_zip_are_read(tmp_path):
  methods = (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    for i, method in enumerate(methods):
      archive.writestr(f'a/{i}.jpg', b'same' * 99, method)
  with (tmp_path / 'x.zip').open('rb') as file:
    # As a program that unpacks itself.
    whole = b'program' + file.read()
  (tmp_path / 'x.zip').write_bytes(whole)
  pool = _pool(tmp_path / 'x.zip')
  assert [pool.read(i) for i in range(3)] == [b'same' * 99] * 3


@pytest.mark.parametrize('kind', KINDS)
def test_a_part_of_an_archive(tmp_path, content, kind):
  plain = _pool(_folder(tmp_path / 'folder', content))
  both = {f'./set/train/{name}': data for name, data in content.items()}
  both |= {'./set/test/a/9.jpg': b'9', './set/test/b/9.jpg': b'9'}
  _write(tmp_path / f'x.{kind}', both)
  assert _pool(tmp_path / f'x.{kind}' / 'set' / 'train').digest == plain.digest
  test = _pool(tmp_path / f'x.{kind}' / 'set' / 'test')
  assert test.ids.tolist() == ['main:a/9.jpg', 'main:b/9.jpg']


@pytest.mark.parametrize('kind', KINDS)
def test_folders_around_the_classes_are_left_out(tmp_path, content, kind):
  plain = _pool(_folder(tmp_path / 'folder', content))
  deep = {f'set/images/{name}': data for name, data in content.items()}
  _write(tmp_path / f'x.{kind}', deep)
  assert _pool(tmp_path / f'x.{kind}').digest == plain.digest


def test_a_folder_of_the_parts_of_a_set_is_refused_with_the_part(tmp_path):
  parts = {'set/train/a/1.jpg': b'1', 'set/test/a/2.jpg': b'2'}
  _write(tmp_path / 'x.zip', parts)
  with pytest.raises(errors.UserError, match=r'as .*x\.zip/set/train'):
    _pool(tmp_path / 'x.zip')


@pytest.mark.parametrize('kind', KINDS)
def test_an_image_beside_the_classes_does_not_make_one_of_them(tmp_path, kind):
  names = ('set/all/b/1.jpg', 'set/all/a/x/2.jpg', 'set/all/3.jpg')
  _write(tmp_path / f'x.{kind}', dict.fromkeys(names, b'1'))
  with pytest.raises(errors.UserError, match=r'/set, all/3\.jpg .*move it'):
    _pool(tmp_path / f'x.{kind}')


def test_one_class_is_a_class(tmp_path):
  _write(tmp_path / 'x.zip', {'all/a/1.jpg': b'1', 'all/a/2.jpg': b'2'})
  assert _pool(tmp_path / 'x.zip').classes == ('main:a',)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('left', [0.0, 0.3, 0.97, 0.9999])
def test_a_cut_archive_gets_one_clear_line(tmp_path, content, kind, left):
  path = tmp_path / f'x.{kind}'
  _write(path, content)
  whole = path.read_bytes()
  # A tar is padded with zeros to 10 kB after its end mark.
  end = len(whole.rstrip(b'\0')) if kind == 'tar' else len(whole)
  path.write_bytes(whole[: int(left * end)])
  with pytest.raises(errors.UserError, match='damaged or incomplete') as e:
    _pool(path)
  assert str(path) in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('kind', KINDS)
def test_text_called_an_archive_gets_one_clear_line(tmp_path, kind):
  (tmp_path / f'x.{kind}').write_bytes(b'<html>not found</html>\n' * 99)
  with pytest.raises(errors.UserError, match='damaged or incomplete'):
    _pool(tmp_path / f'x.{kind}')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['../a/1.jpg', 'a/../../1.jpg', '/a/1.jpg'])
def test_names_that_lead_out_are_refused(tmp_path, kind, name):
  _write(tmp_path / f'x.{kind}', {'a/2.jpg': b'2', name: b'1'})
  with pytest.raises(errors.UserError, match='leads out of it'):
    _pool(tmp_path / f'x.{kind}')


def test_a_name_that_comes_twice_is_refused(tmp_path):
  with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
    archive.addfile(tarfile.TarInfo('a/1.jpg'))
    archive.addfile(tarfile.TarInfo('a/1.jpg'))
  with pytest.raises(errors.UserError, match='comes twice'):
    _pool(tmp_path / 'x.tar')


def _with(path, name, kind, to='/etc/passwd'):
  """An archive of an image and of a member of another kind."""
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('a/1.jpg', b'')
      member = zipfile.ZipInfo(name)
      member.external_attr = 0o120777 << 16
      archive.writestr(member, to)
    return
  with tarfile.open(path, 'w') as archive:
    archive.addfile(tarfile.TarInfo('a/1.jpg'))
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    archive.addfile(member)


@pytest.mark.parametrize('name', ['a/notes.txt', 'a/.2.jpg', '.b/2.jpg'])
def test_links_that_are_no_images_are_passed_over(tmp_path, name):
  for suffix in ('tar', 'zip'):
    _with(tmp_path / f'x.{suffix}', name, tarfile.SYMTYPE)
    assert _pool(tmp_path / f'x.{suffix}').ids.tolist() == ['main:a/1.jpg']


@pytest.mark.parametrize(
  ('name', 'kind', 'suffix'),
  [
    ('a/2.jpg', tarfile.SYMTYPE, 'tar'),
    ('a/2.jpg', tarfile.SYMTYPE, 'zip'),
    ('b', tarfile.SYMTYPE, 'tar'),
    ('b/3.jpg', tarfile.LNKTYPE, 'tar'),
    ('b/3.jpg', tarfile.GNUTYPE_SPARSE, 'tar'),
  ],
)
def test_images_that_an_archive_does_not_hold_are_no_images_less(
  tmp_path, name, kind, suffix
):
  path = tmp_path / f'x.{suffix}'
  _with(path, name, kind)
  with pytest.raises(errors.UserError, match=f'{name} in .* is a link, or spa'):
    _pool(path)


def test_an_empty_class_of_an_archive_is_refused_as_that_of_a_folder(tmp_path):
  for kind in ('zip', 'tar'):
    path = tmp_path / f'x.{kind}'
    _write(path, {'set/a/1.jpg': b'1', 'set/b/2.jpg': b'2'})
    if kind == 'zip':
      with zipfile.ZipFile(path, 'a') as archive:
        for name in ('set/c/', '__MACOSX/', 'set/.d/', 'set/a/x/'):
          archive.writestr(name, b'')
    else:
      with tarfile.open(path, 'a') as archive:
        folder = tarfile.TarInfo('./set/c')
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    for at in ('', '/set'):
      with pytest.raises(errors.UserError, match='every class; c has none'):
        _pool(f'{path}{at}')


@pytest.mark.parametrize(
  ('kind', 'name', 'message'),
  [
    ('tar.gz', 'x.tar', 'is a .tar.gz file: rename it'),
    ('tar', 'x.tgz', 'is a .tar file: rename it'),
    ('zip', 'x.tar', 'is a .zip file: rename it'),
    ('tar', 'x.zip', 'is a .tar file: rename it'),
  ],
)
def test_an_archive_is_named_as_what_it_is(tmp_path, kind, name, message):
  _write(tmp_path / f'y.{kind}', {'a/1.jpg': bytes(9)})
  (tmp_path / f'y.{kind}').rename(tmp_path / name)
  with pytest.raises(errors.UserError, match=message):
    _pool(tmp_path / name)


def test_a_name_that_comes_twice_is_named_however_it_is_written(tmp_path):
  _write(tmp_path / 'x.tar', {'./a/1.jpg': b'1', 'a/1.jpg': b'2'})
  with pytest.raises(errors.UserError, match=r"'a/1\.jpg' comes twice"):
    _pool(tmp_path / 'x.tar')


def test_the_class_of_a_test_set_of_one_class_is_that_of_the_folder(tmp_path):
  _folder(tmp_path / 'train', {'cat/1.jpg': b'1', 'dog/2.jpg': b'2'})
  _folder(tmp_path / 'test', {'cat/dog/1.jpg': b'1'})
  _write(tmp_path / 'test.zip', {'cat/dog/1.jpg': b'1'})
  for name in ('test', 'test.zip'):
    spec = {'train': str(tmp_path / 'train'), 'test': str(tmp_path / name)}
    _, test = datasets.open_target(spec, 0)
    assert test.labels.tolist() == [0]


def test_a_second_name_of_a_file_is_an_image(tmp_path):
  with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
    first = tarfile.TarInfo('a/1.jpg')
    first.size = 4
    archive.addfile(first, io.BytesIO(b'same'))
    link = tarfile.TarInfo('b/2.jpg')
    link.type, link.linkname = tarfile.LNKTYPE, './a/1.jpg'
    archive.addfile(link)
  pool = _pool(tmp_path / 'x.tar')
  assert pool.ids.tolist() == ['main:a/1.jpg', 'main:b/2.jpg']
  assert [pool.read(i) for i in range(2)] == [b'same'] * 2


def test_names_that_are_no_text_are_those_of_the_folder(tmp_path):
  name = os.fsdecode(b'a/caf\xe9.jpg')
  plain = _pool(_folder(tmp_path / 'folder', {name: b'1', 'b/2.jpg': b'2'}))
  with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
    archive.add(tmp_path / 'folder', '.')
  packed = _pool(tmp_path / 'x.tar')
  assert packed.ids.tolist() == plain.ids.tolist()
  assert packed.digest == plain.digest


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_unpacks_to_more_than_it_says_is_cut(tmp_path, method):
  large = 2**27
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    archive.writestr('a/1.jpg', bytes(large), method)
  data = bytearray((tmp_path / 'x.zip').read_bytes())
  # The list at the end says less, but more than it is packed.
  at = data.index(b'PK\x01\x02') + 24
  assert int.from_bytes(data[at : at + 4], 'little') == large
  data[at : at + 4] = (100_000).to_bytes(4, 'little')
  (tmp_path / 'x.zip').write_bytes(data)
  pool = _pool(tmp_path / 'x.zip')
  tracemalloc.start()
  with pytest.raises(OSError, match='archive'):
    pool.read(0)
  assert tracemalloc.get_traced_memory()[1] < large
  tracemalloc.stop()


def test_an_encrypted_zip_is_refused(tmp_path):
  _write(tmp_path / 'x.zip', {'a/1.jpg': b'1'})
  data = bytearray((tmp_path / 'x.zip').read_bytes())
  data[data.index(b'PK\x01\x02') + 8] |= 1
  (tmp_path / 'x.zip').write_bytes(data)
  with pytest.raises(errors.UserError, match='not encrypted'):
    _pool(tmp_path / 'x.zip')


def test_an_image_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(paths, 'MAX_BYTES', 10)
  _write(tmp_path / 'x.zip', {'a/1.jpg': bytes(11), 'a/2.jpg': bytes(10)})
  pool = _pool(tmp_path / 'x.zip')
  with pytest.raises(OSError, match='larger than 10 bytes'):
    pool.read(0)
  assert pool.read(1) == bytes(10)


def test_a_damaged_member_is_a_bad_image_and_the_others_are_good(tmp_path):
  first, second = np.random.default_rng(0).bytes(5000), b'2'
  _write(tmp_path / 'x.zip', {'a/1.jpg': first, 'a/2.jpg': second})
  data = bytearray((tmp_path / 'x.zip').read_bytes())
  data[1000] ^= 255
  (tmp_path / 'x.zip').write_bytes(data)
  pool = _pool(tmp_path / 'x.zip')
  with pytest.raises(OSError, match='damaged in the archive'):
    pool.read(0)
  assert pool.read(1) == second


def test_a_damaged_lzma_member_is_a_bad_image(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    archive.writestr('a/1.jpg', b'same' * 99, zipfile.ZIP_LZMA)
  data = bytearray((tmp_path / 'x.zip').read_bytes())
  # After a header and a name, LZMA's version, size and properties.
  data[30 + len('a/1.jpg') + 4] = 255
  (tmp_path / 'x.zip').write_bytes(data)
  with pytest.raises(paths.DamagedError, match='damaged in the archive'):
    _pool(tmp_path / 'x.zip').read(0)


@pytest.mark.parametrize('kind', KINDS)
def test_what_the_disk_does_is_no_damage(tmp_path, monkeypatch, kind):
  _write(tmp_path / f'x.{kind}', {'a/1.jpg': b'1'})
  pool = _pool(tmp_path / f'x.{kind}')

  def stale(*args):
    raise OSError(errno.ESTALE, 'Stale file handle')

  with monkeypatch.context() as patch:
    patch.setattr('sjft_jax.paths.open', stale, raising=False)
    with pytest.raises(OSError, match='Stale') as e:
      pool.read(0)
    assert paths.is_transient(e.value)
  assert pool.read(0) == b'1'


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize('good', [0, 2000])
@pytest.mark.parametrize('kind', KINDS)
def test_an_archive_that_cannot_be_read_now_is_not_called_damaged(
  tmp_path, monkeypatch, content, kind, good, number
):
  path = tmp_path / f'x.{kind}'
  _write(path, content)

  def failing(name, *args):
    return faults.opened(name, number, good)

  with monkeypatch.context() as patch:
    patch.setattr('sjft_jax.paths.open', failing, raising=False)
    patch.setattr(type(path), 'open', failing)
    with pytest.raises(errors.UserError, match='cannot be read now') as e:
      _pool(path)
  assert os.strerror(number) in str(e.value)
  assert str(path) in str(e.value)
  assert len(_pool(path)) == len(content)


def test_a_missing_package_names_the_extra(tmp_path, content, monkeypatch):
  _write(tmp_path / 'x.tgz', content)
  monkeypatch.setitem(sys.modules, 'indexed_gzip', None)
  with pytest.raises(errors.UserError, match=r"--editable '\.\[packs\]'"):
    _pool(tmp_path / 'x.tgz')


def test_a_large_tar_gz_takes_no_more_memory_than_it_may(tmp_path, monkeypatch):
  monkeypatch.setattr(packs, '_SPACING', 2**16)
  monkeypatch.setattr(packs, '_POINTS', 8)
  rng, content = np.random.default_rng(0), {}
  for i in range(60):
    content[f'a/{i:02d}.jpg'] = rng.bytes(50_000)
  _write(tmp_path / 'x.tgz', content)
  opened, unpacker = [], indexed_gzip.IndexedGzipFile

  def watched(**kwargs):
    opened.append(unpacker(**kwargs))
    return opened[-1]

  monkeypatch.setattr(indexed_gzip, 'IndexedGzipFile', watched)
  pool = _pool(tmp_path / 'x.tgz')
  assert 4 <= len(list(opened[0].seek_points())) <= 10
  for order in (range(60), range(59, -1, -1), rng.permutation(60).tolist()):
    for i in order:
      assert pool.read(i) == content[f'a/{i:02d}.jpg']


def test_images_that_follow_each_other_are_unpacked_at_once():
  data, asked = bytes(range(100)), []

  def pread(count, at):
    asked.append((at, count))
    return data[at : at + count]

  read = packs._Unpacked(pread, 20)
  for at in (50, 58, 66, 71, 64, 10, 30, 80, 86, 95):
    assert read(at, 5) == data[at : at + 5]
  # 58 follows 50; 64, which lies behind 71, is of the block before.
  assert asked == [(50, 5), (58, 20), (10, 5), (30, 20), (80, 5), (86, 20)]
  assert read(0, 40) == data[:40]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'1.jpg': b'1', 'a/2.jpg': b'2'}, '1 images lie beside'),
    ({'a/1.txt': b'1'}, 'no image lies in'),
    ({}, 'no image lies in'),
  ],
)
def test_other_layouts_get_one_clear_line(tmp_path, content, message):
  _write(tmp_path / 'x.zip', content)
  with pytest.raises(errors.UserError, match=message):
    _pool(tmp_path / 'x.zip')


def test_a_directory_may_be_called_like_an_archive(tmp_path, content):
  pool = _pool(_folder(tmp_path / 'x.zip', content))
  assert len(pool) == len(content)
