import contextlib
import dataclasses
import errno
import os
import threading
import zipfile

import numpy as np
import pytest

from sjft_jax import errors, paths
from sjft_jax.data import datasets, image_files, pipelines
from tests import store
from tests.data import trees


def test_a_folder_is_read_by_class_in_sorted_order(tmp_path):
  spec = trees.target(tmp_path)
  trees.write(tmp_path, 'train/a/sub/2/X.JPeG', 'train/a/.hidden.png')
  trees.write(
    tmp_path, 'train/a/notes.txt', 'train/a/.git/1.png', 'train/.x/1.png'
  )
  train, test = datasets.open_target(spec, seed=0)
  assert train.name == test.name == 'target'
  assert train.classes == test.classes == ('a', 'b')
  names = [*(f'a/{i}.jpg' for i in range(4)), 'a/sub/2/X.JPeG']
  names += [f'b/{i}.jpg' for i in range(4)]
  assert train.ids.tolist() == [f'target:train/{name}' for name in names]
  assert train.labels.tolist() == [0] * 5 + [1] * 4
  assert train.labels.dtype == np.int32
  assert test.ids.tolist()[0] == 'target:test/a/0.jpg'
  assert train.read(5) == b'train/b/0.jpg'
  assert test.read(3) == b'test/b/1.jpg'


def test_the_digest_follows_content_not_place(tmp_path):
  def digest(root, change=lambda root: None):
    trees.write(root, 'a/1.jpg', 'b/1.jpg', data=b'xx')
    change(root)
    return trees.pool(root).digest

  first = digest(tmp_path / '1')
  assert first == digest(tmp_path / '2')
  changes = (
    lambda root: trees.write(root, 'b/1.jpg', data=b'xxx'),
    lambda root: trees.write(root, 'b/2.jpg'),
    lambda root: (root / 'b/1.jpg').rename(root / 'b/2.jpg'),
    lambda root: (root / 'b').rename(root / 'c'),
  )
  others = {digest(tmp_path / f'c{i}', c) for i, c in enumerate(changes)}
  assert len(others | {first}) == 5


def test_names_that_are_not_utf8_give_ids_that_can_be_written(tmp_path):
  trees.write(tmp_path, 'a/1.jpg')
  raw = os.path.join(os.fsencode(tmp_path), b'a', b'caf\xe9.jpg')
  with open(raw, 'wb') as file:
    file.write(b'coffee')
  pool = trees.pool(tmp_path)
  assert pool.ids.tolist() == ['main:a/1.jpg', 'main:a/caf\\xe9.jpg']
  assert pool.read(1) == b'coffee'
  '\n'.join(pool.ids).encode('utf-8')
  trees.write(tmp_path, 'a/caf\\xe9.jpg')
  with pytest.raises(errors.UserError, match='same name'):
    trees.pool(tmp_path)


def test_links_are_followed_once_and_broken_ones_fail_when_read(tmp_path):
  trees.write(tmp_path, 'elsewhere/1.jpg', 'pool/a/2.jpg')
  (tmp_path / 'pool/a/link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'pool/a/loop').symlink_to(tmp_path / 'pool/a')
  (tmp_path / 'pool/a/z.jpg').symlink_to(tmp_path / 'gone.jpg')
  pool = trees.pool(tmp_path / 'pool')
  expected = ['main:a/2.jpg', 'main:a/link/1.jpg', 'main:a/z.jpg']
  assert pool.ids.tolist() == expected
  assert pool.sizes.tolist() == [1, 1, -1]
  with pytest.raises(FileNotFoundError):
    pool.read(2)


def test_folders_around_the_classes_are_left_out(tmp_path, bucket):
  trees.write(tmp_path / 'plain', 'a/1.jpg', 'b/x/2.jpg')
  trees.write(tmp_path / 'deep', 'set/images/a/1.jpg', 'set/images/b/x/2.jpg')
  store.fill(bucket, 'b', tmp_path / 'deep')
  plain = trees.pool(tmp_path / 'plain')
  for deep in (trees.pool(tmp_path / 'deep'), trees.pool('gs://b/')):
    assert deep.ids.tolist() == plain.ids.tolist()
    assert deep.digest == plain.digest
    assert deep.read(1) == b'x'


@pytest.mark.parametrize('deep', ['', 'set/'])
def test_an_image_beside_the_classes_does_not_make_one_of_them(
  tmp_path, bucket, deep
):
  names = (f'{deep}all/a/1.jpg', f'{deep}all/b/x/2.jpg', f'{deep}all/3.jpg')
  trees.write(tmp_path / 'set', *names)
  store.fill(bucket, 'b', tmp_path / 'set')
  for place in (tmp_path / 'set', 'gs://b/'):
    with pytest.raises(errors.UserError, match=r'all/3\.jpg .*move it') as e:
      trees.pool(place)
    assert '\n' not in str(e.value)
  # Of a test set it may be a class; and what has no classes in it is one.
  trees.write(tmp_path, 'train/all/1.jpg', 'train/other/1.jpg')
  spec = {
    'train': str(tmp_path / 'train'),
    'test': str(tmp_path / 'set' / deep),
  }
  assert set(datasets.open_target(spec, seed=0)[1].labels) == {0}
  trees.write(tmp_path, 'one/a/1.jpg', 'one/a/x/2.jpg', 'one/a/x/3.jpg')
  assert trees.pool(tmp_path / 'one').classes == ('main:a',)


def test_images_may_have_any_of_a_jpegs_suffixes(tmp_path):
  trees.write(tmp_path, 'a/1.JFIF', 'a/2.jpe', 'a/3.Jpeg', 'a/4.jpg')
  assert len(trees.pool(tmp_path)) == 4


def test_a_link_that_leads_up_adds_nothing(tmp_path):
  trees.write(tmp_path, 'pool/a/1.jpg', 'pool/b/2.jpg')
  (tmp_path / 'pool/a/up').symlink_to(tmp_path / 'pool')
  (tmp_path / 'pool/b/far').symlink_to(tmp_path)
  assert trees.pool(tmp_path / 'pool').ids.tolist() == [
    'main:a/1.jpg',
    'main:b/2.jpg',
  ]


def _no_folder(root):
  return ''


def _missing(root):
  return root / 'gone'


def _a_file(root):
  trees.write(root, 'file')
  return root / 'file'


def _nothing_in_it(root):
  return root


def _loose_images(root):
  trees.write(root, 'a/1.jpg', '2.jpg', '3.jpg')
  return root


def _an_empty_class(root):
  trees.write(root, 'a/1.jpg', 'b/notes.txt')
  return root


def _parts_of_a_set(root):
  trees.write(root, 'Train/a/1.jpg', 'test/a/2.jpg')
  return root


def _parts_of_a_set_and_more(root):
  trees.write(root, 'train/a/1.jpg', 'test/a/2.jpg', 'unlabeled/a/3.jpg')
  return root


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (_parts_of_a_set, 'the parts of a set, Train, test: give .*/Train'),
    (_parts_of_a_set_and_more, 'the parts of a set, test, train: give .*/tr'),
    (_no_folder, 'none was given: --config.source.main.dir=DIR'),
    (_missing, 'gone does not exist'),
    (_a_file, 'file is not a folder'),
    (_nothing_in_it, 'holds no folder'),
    (_loose_images, r'directly in .* \(2.jpg, in all 2\)'),
    (_an_empty_class, 'every class; b has none'),
  ],
)
def test_unusable_folders_get_one_clear_line(tmp_path, make, message):
  with pytest.raises(errors.UserError, match=message) as e:
    trees.pool(make(tmp_path))
  assert str(e.value).startswith('source.main.dir needs')
  assert '\n' not in str(e.value)


# --- Csv ----------------------------------------------------------------------


def _csv(tmp_path, text, encoding='utf-8'):
  trees.write(tmp_path, 'im/1.jpg', 'im/2.jpg', 'im/3.jpg')
  (tmp_path / 'list.csv').write_text(text, encoding=encoding)
  return tmp_path / 'list.csv'


def test_a_csv_lists_images_and_labels(tmp_path):
  text = 'label,extra,path\r\n"dog, big",1,im/3.jpg\r\ncat,2,im/1.jpg\r\n'
  pool = trees.pool(_csv(tmp_path, text, 'utf-8-sig'))
  assert pool.classes == ('main:cat', 'main:dog, big')
  assert pool.ids.tolist() == ['main:im/3.jpg', 'main:im/1.jpg']
  assert pool.labels.tolist() == [1, 0]
  assert pool.read(0) == b'x'
  assert pool.sizes.tolist() == [1, 1]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'has nothing'),
    ('file,label\n', 'has file, label'),
    ('path,label\n', 'lists no image'),
    ('path,label\nim/1.jpg\n', 'line 2 .* lacks a path or a label'),
    ('path,label\nim/1.jpg,a\n../x.jpg,a\n', 'line 3 .* leads out'),
    ('path,label\n/im/1.jpg,a\n', '/im/1.jpg, an absolute path'),
    ('path,label\nim/1.jpg,a\nim//1.jpg,b\n', 'a second time, after line 2'),
    ('path,label\n"im/1.jpg,a\n', 'is none'),
    ('path,label\nim/1,a.jpg,a\n', 'line 2 of .* has more columns than the'),
    ('path,label\nim/\0.jpg,a\n', 'line 2 of .* holds bytes that are no text'),
    ('path,label\nim/1.jpg,  \n', 'lacks a path or a label'),
  ],
)
def test_unusable_csvs_get_one_clear_line(tmp_path, text, message):
  with pytest.raises(errors.UserError, match=message) as e:
    trees.pool(_csv(tmp_path, text))
  assert '\n' not in str(e.value)


def test_spaces_around_a_label_make_no_other_class(tmp_path):
  pool = trees.pool(_csv(tmp_path, 'path, label\nim/1.jpg, a\nim/2.jpg,a \n'))
  assert pool.classes == ('main:a',)


def test_a_class_may_be_called_train(tmp_path):
  trees.write(tmp_path, 'train/1.jpg', 'car/2.jpg')
  assert trees.pool(tmp_path).classes == ('main:car', 'main:train')


def test_a_folder_in_a_store_is_the_one_on_disk(tmp_path, bucket):
  names = ('b/2.jpg', 'b/x/1.PNG', 'a/.3.jpg', 'a/4.txt', 'c/5.gif', '.d/6.jpg')
  trees.write(tmp_path, *names, 'a-b/[7].jpg', 'a/8.webp', 'readme')
  store.fill(bucket, 'b/set', tmp_path)
  store.fill(bucket, 'b/set2', tmp_path)
  plain, stored = trees.pool(tmp_path), trees.pool('gs://b/set')
  assert len(plain) == 5
  assert stored.ids.tolist() == plain.ids.tolist()
  assert stored.digest == plain.digest
  assert stored.read(1) == plain.read(1) == b'x'


@pytest.mark.parametrize(
  ('name', 'message'),
  [('set/1.jpg', 'images lie directly'), ('other/1/1.jpg', 'does not exist')],
)
def test_other_stores_get_one_clear_line(tmp_path, bucket, name, message):
  trees.write(tmp_path, name)
  store.fill(bucket, 'b', tmp_path)
  with pytest.raises(errors.UserError, match=message):
    trees.pool('s3://b/set')


def test_a_csv_in_a_store_is_the_one_on_disk(tmp_path, bucket):
  text = 'path,label\nim/3.jpg,b\n./im//1.jpg,a\nim/none.jpg,b\n'
  path = _csv(tmp_path, text)
  store.fill(bucket, 'b/set', path.parent)
  plain, stored = trees.pool(path), trees.pool(f's3://b/set/{path.name}')
  assert stored.digest == plain.digest
  assert stored.sizes.tolist() == [1, 1, -1]
  assert stored.read(1) == b'x'
  with pytest.raises(OSError, match='none'):
    stored.read(2)


@pytest.mark.parametrize(
  'name', ['../x.jpg', 'im/../../x.jpg', '/b/x.jpg', '../set2/x.jpg', '..']
)
def test_a_csv_does_not_lead_out_of_its_folder(tmp_path, bucket, name):
  path = _csv(tmp_path, f'path,label\n{name},a\n')
  store.fill(bucket, 'b/set', path.parent)
  for place in (path, f's3://b/set/{path.name}'):
    with pytest.raises(errors.UserError, match=r'leads out|an absolute'):
      trees.pool(place)


def test_the_images_of_a_linked_csv_lie_beside_the_link(tmp_path, monkeypatch):
  # As in a cache of downloads, where every file is a link to what is kept
  # elsewhere by another name.
  trees.write(tmp_path, 'kept/0a', data=b'path,label\nim/1.jpg,a\nim/2.jpg,b\n')
  trees.write(tmp_path, 'kept/0b', 'kept/im/1.jpg', data=b'other')
  trees.write(tmp_path, 'set/im/1.jpg', data=b'one')
  (tmp_path / 'set/im/2.jpg').symlink_to(tmp_path / 'kept/0b')
  (tmp_path / 'set/list.csv').symlink_to(tmp_path / 'kept/0a')
  monkeypatch.chdir(tmp_path)
  for path in (
    tmp_path / 'set/list.csv',
    'set/list.csv',
    'kept/../set/list.csv',
  ):
    pool = trees.pool(path)
    assert [pool.read(i) for i in range(2)] == [b'one', b'other']
    assert pool.sizes.tolist() == [3, 5]


def test_a_csv_that_was_linked_alone_is_read_where_its_images_lie(tmp_path):
  trees.write(tmp_path, 'set/im/1.jpg', data=b'one')
  trees.write(tmp_path, 'set/list.csv', data=b'path,label\nim/1.jpg,a\n')
  (tmp_path / 'home').mkdir()
  (tmp_path / 'home/list.csv').symlink_to(tmp_path / 'set/list.csv')
  pool = trees.pool(tmp_path / 'home/list.csv')
  assert pool.read(0) == b'one'
  assert pool.digest == trees.pool(tmp_path / 'set/list.csv').digest


def test_links_that_are_neither_images_nor_classes_do_not_matter(tmp_path):
  trees.write(tmp_path, 'a/1.jpg', 'b/2.jpg')
  before = trees.pool(tmp_path).digest
  for name in ('README.md', '.old', 'a/.old', 'a/notes.txt'):
    (tmp_path / name).symlink_to(tmp_path / 'nowhere')
  assert trees.pool(tmp_path).digest == before
  (tmp_path / '001.ak47').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(errors.UserError, match=r'001\.ak47 is a link that leads'):
    trees.pool(tmp_path)


def test_a_csv_does_not_lead_out_of_its_folder_by_a_link(tmp_path):
  trees.write(tmp_path, 'away/deep/0.jpg', 'away/1.jpg', data=b'secret')
  path = _csv(tmp_path / 'set', 'path,label\nlink/../1.jpg,a\n')
  (path.parent / 'link').symlink_to(tmp_path / 'away/deep')
  with pytest.raises(FileNotFoundError):
    trees.pool(path).read(0)


def test_an_image_that_is_too_large_is_not_read(tmp_path, bucket, monkeypatch):
  monkeypatch.setattr(paths, 'MAX_BYTES', 10)
  trees.write(tmp_path, 'a/1.tiff', data=bytes(11))
  trees.write(tmp_path, 'a/2.tiff', data=bytes(10))
  trees.write(tmp_path, 'a/3.tiff', data=b'')
  store.fill(bucket, 'b', tmp_path)
  for place in (tmp_path, 'gs://b/'):
    pool = trees.pool(place)
    found = dict(pipelines.find_bad(pool, threads=1))
    assert 'larger than 10 bytes' in found[0]
    assert not paths.may_pass(found[0])
    assert pool.read(1) == bytes(10)
    assert pool.read(2) == b''


def test_a_folder_that_cannot_be_opened_stops_the_run(tmp_path, monkeypatch):
  (tmp_path / 'cat' / 'deep').mkdir(parents=True)
  (tmp_path / 'cat' / '1.png').write_bytes(b'1')
  (tmp_path / 'cat' / 'deep' / '2.png').write_bytes(b'2')
  scan = os.scandir

  def closed(path):
    if str(path).endswith('deep'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scan(path)

  monkeypatch.setattr(os, 'scandir', closed)
  with pytest.raises(errors.UserError, match='deep cannot be read now'):
    datasets.open_pool({'main': {'dir': str(tmp_path)}})


def _failing(monkeypatch, name, number=errno.EIO):
  """Whoever asks the disk about a path of this ending gets an error."""
  ask = os.stat

  def stat(path, *args, **kwargs):
    if str(path).endswith(name):
      raise OSError(number, os.strerror(number), str(path))
    return ask(path, *args, **kwargs)

  monkeypatch.setattr(os, 'stat', stat)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize('listed', [False, True])
def test_a_size_that_is_not_known_now_is_refused_by_name(
  tmp_path, monkeypatch, listed, number
):
  text = 'path,label\nim/1.jpg,a\nim/2.jpg,a\n'
  path = _csv(tmp_path, text) if listed else tmp_path
  if not listed:
    trees.write(tmp_path, 'im/1.jpg', 'im/2.jpg')
  digest = trees.pool(path).digest
  with monkeypatch.context() as patch:
    _failing(patch, '2.jpg', number)
    with pytest.raises(errors.UserError, match=r'im/2.jpg cannot be read now'):
      trees.pool(path)
  assert trees.pool(path).digest == digest


def test_a_path_that_leads_nowhere_for_good_is_a_missing_image(
  tmp_path, monkeypatch
):
  trees.write(tmp_path, 'a/1.jpg', 'a/2.jpg')
  for number in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
    with monkeypatch.context() as patch:
      _failing(patch, '2.jpg', number)
      assert trees.pool(tmp_path).sizes.tolist() == [1, -1]


def test_a_class_whose_disk_is_away_is_no_class_less(tmp_path, monkeypatch):
  trees.write(tmp_path / 'set', 'a/1.jpg')
  trees.write(tmp_path / 'disk', 'b/2.jpg')
  (tmp_path / 'set/b').symlink_to(tmp_path / 'disk/b')
  assert trees.pool(tmp_path / 'set').classes == ('main:a', 'main:b')
  scan = os.scandir

  class Away:
    """An entry of a listing of which the disk tells no more."""

    def __init__(self, entry):
      self.name, self.path = entry.name, entry.path

    def is_dir(self):
      raise OSError(errno.ESTALE, 'Stale file handle', self.path)

  @contextlib.contextmanager
  def listed(path):
    with scan(path) as entries:
      yield [Away(e) if e.name == 'b' else e for e in entries]

  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', listed)
    for root in ('set', 'disk', '.'):
      with pytest.raises(errors.UserError, match=r'/b cannot be read now .Sta'):
        trees.pool(tmp_path / root)
  (tmp_path / 'disk/b/2.jpg').unlink()
  (tmp_path / 'disk/b').rmdir()
  with pytest.raises(errors.UserError, match='set/b is a link that leads nowh'):
    trees.pool(tmp_path / 'set')


def test_many_sizes_are_asked_for_at_once_and_stay_in_order(
  tmp_path, monkeypatch
):
  for i in range(100):
    trees.write(tmp_path, f'{i % 3}/{i:02d}.jpg', data=b'x' * i)
  (tmp_path / '0/zz.jpg').symlink_to(tmp_path / 'gone')
  alone = trees.pool(tmp_path)
  monkeypatch.setattr(image_files, '_MANY', 10)
  monkeypatch.setattr(image_files, '_ASKING', 3)
  # Three questions are open before one is answered.
  meeting, ask = threading.Barrier(3, timeout=30), image_files.stat

  def stat(path):
    if path.endswith(('/00.jpg', '/09.jpg', '/18.jpg')):
      meeting.wait()
    return ask(path)

  monkeypatch.setattr(image_files, 'stat', stat)
  together = trees.pool(tmp_path)
  assert together.digest == alone.digest
  assert together.ids.tolist() == alone.ids.tolist()
  assert together.sizes.tolist() == alone.sizes.tolist()


def _grey(shade):
  """A picture as others of other shades are: of one size."""
  return b'P5 4 4 255\n' + bytes([shade]) * 16


def test_other_pictures_of_equal_names_and_sizes_are_another_set(tmp_path):
  for root, shade in (('x', 1), ('y', 2)):
    for i in range(20):
      trees.write(tmp_path / root, f'a/{i:02d}.pgm', data=_grey(shade))
  first, other = trees.pool(tmp_path / 'x'), trees.pool(tmp_path / 'y')
  assert first.ids.tolist() == other.ids.tolist()
  assert first.sizes.tolist() == other.sizes.tolist()
  assert first.digest != other.digest
  assert trees.pool(tmp_path / 'x').digest == first.digest


def test_a_stamp_tells_that_one_file_was_written_since(tmp_path):
  for i in range(20):
    trees.write(tmp_path, f'set/a/{i:02d}.pgm', data=_grey(i))
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
    archive.write(tmp_path / 'set/a/00.pgm', 'a/00.pgm')
  text = 'path,label\na/00.pgm,a\na/01.pgm,b\n'
  (tmp_path / 'set/list.csv').write_text(text)
  places = ['set', 'set.zip', 'set/list.csv']
  before = [trees.pool(tmp_path / place) for place in places]
  again = [trees.pool(tmp_path / place) for place in places]
  assert [p.stamps for p in again] == [p.stamps for p in before]
  os.utime(tmp_path / 'set/a/01.pgm', ns=(1, 1))
  os.utime(tmp_path / 'set.zip', ns=(1, 1))
  after = [trees.pool(tmp_path / place) for place in places]
  for a, b in zip(before, after, strict=True):
    # The set is the same wherever it is copied to.
    assert a.digest == b.digest
    assert a.stamps != b.stamps


def test_a_set_is_not_known_by_what_cannot_be_read_now(tmp_path):
  trees.write(tmp_path, 'a/1.jpg', 'a/2.jpg', 'b/3.jpg')
  pool = trees.pool(tmp_path)

  def stale(i):
    raise OSError(errno.ESTALE, 'Stale file handle')

  away = dataclasses.replace(pool, read=stale)
  with pytest.raises(errors.UserError, match=r'a/1\.jpg cannot be read now'):
    assert away.digest
  (tmp_path / 'a/1.jpg').unlink()
  assert trees.pool(tmp_path).digest != pool.digest
