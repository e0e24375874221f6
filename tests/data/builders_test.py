"""Each builder on a tiny archive in the layout of the original."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import pathlib
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from sjft_jax import files, prepare, progress
from sjft_jax.data import datasets, recorded, tfds_sets
from sjft_jax.data.builders import archives
from sjft_jax.data.builders.indoor67 import indoor67_dataset_builder
from sjft_jax.errors import UserError
from tests.data import faults

_COUNTER = itertools.count()


def picture():
  """A small JPEG, another one each time."""
  rng = np.random.default_rng(next(_COUNTER))
  buffer = io.BytesIO()
  pixels = rng.integers(0, 256, (8, 9, 3), np.uint8)
  Image.fromarray(pixels).save(buffer, 'JPEG')
  return buffer.getvalue()


def write_tar(path, content):
  mode = 'w:gz' if path.name.endswith('gz') else 'w'
  with tarfile.open(path, mode, format=tarfile.USTAR_FORMAT) as tar:
    for name, data in content.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))


# Each writes the archives, and returns {split: {file name: (class, data)}}.


def caltech256(manual_dir):
  rows = {
    f'{c}/{c[:3]}_{i:04d}.jpg': (c, picture())
    for c in ('001.ak47', '002.american-flag', '056.dog')
    for i in (1, 2, 3)
  }
  content = {f'256_ObjectCategories/{k}': data for k, (_, data) in rows.items()}
  root = '256_ObjectCategories/'
  content[f'{root}056.dog/greg/vision309/056_0001.jpg'] = picture()
  content[f'{root}198.spider/RENAME2'] = b'mv 1 2'
  content[f'{root}257.clutter/257_0001.jpg'] = picture()
  write_tar(manual_dir / '256_ObjectCategories.tar', content)
  return {'train': rows}


def indoor67(manual_dir):
  names = [f'{c}/{n}.jpg' for c in indoor67_dataset_builder.NAMES for n in 'ad']
  names[names.index('mall/a.jpg')] = 'mall/shopping mall.jpg'
  rows = {name: (name.partition('/')[0], picture()) for name in names}
  content = {f'Images/{name}': data for name, (_, data) in rows.items()}
  content['Images/bar/in no list.jpg'] = picture()
  write_tar(manual_dir / 'indoorCVPR_09.tar', content)
  train = [name for name in names if not name.endswith('d.jpg')]
  test = [name for name in names if name.endswith('d.jpg')]
  # The test list has no last newline.
  (manual_dir / 'TrainImages.txt').write_text('\n'.join(train) + '\n')
  (manual_dir / 'TestImages.txt').write_text('\n'.join(test))
  return {
    'train': {name: rows[name] for name in train},
    'test': {name: rows[name] for name in test},
  }


def places205(manual_dir):
  classes = ('a/abbey', 'a/apartment_building/outdoor', 'y/yard')
  splits, content, lists = {}, {}, {}
  for split, names in (('train', 'pqr'), ('val', 's')):
    splits[split] = {
      f'{c}/gsun_{n}.jpg': (c, picture()) for n in names for c in classes
    }
    rows = [
      f'{name} {classes.index(c)}\n' for name, (c, _) in splits[split].items()
    ]
    path = f'trainvalsplit_places205/{split}_places205.csv'
    lists[path] = ''.join(rows).encode()
    for name, (_, data) in splits[split].items():
      path = f'data/vision/torralba/deeplearning/images256/{name}'
      content[path] = data
  write_tar(manual_dir / 'imagesPlaces205_resize.tar.gz', content)
  write_tar(manual_dir / 'trainvalsplit_places205.tar.gz', lists)
  return splits


def tiny_imagenet(manual_dir):
  root, wnids = 'tiny-imagenet-200', ('n02124075', 'n01443537')
  train = {f'{w}_{i}.JPEG': (w, picture()) for w in wnids for i in range(3)}
  val = {f'val_{i}.JPEG': (wnids[i % 2], picture()) for i in range(4)}
  boxes = [f'{name}\t{w}\t0\t32\t44\t62\n' for name, (w, _) in val.items()]
  with zipfile.ZipFile(manual_dir / f'{root}.zip', 'w') as archive:
    archive.writestr(f'{root}/', '')
    archive.writestr(f'{root}/wnids.txt', '\n'.join(wnids))
    archive.writestr(f'{root}/words.txt', 'n02124075\tEgyptian cat\n')
    archive.writestr(f'{root}/val/val_annotations.txt', ''.join(boxes))
    for w in wnids:
      archive.writestr(f'{root}/train/{w}/{w}_boxes.txt', '0.JPEG\t0\t0\t1\t1')
    for name, (w, data) in train.items():
      archive.writestr(f'{root}/train/{w}/images/{name}', data)
    for name, (_, data) in val.items():
      archive.writestr(f'{root}/val/images/{name}', data)
    archive.writestr(f'{root}/test/images/test_0.JPEG', picture())
  return {'train': train, 'val': val}


def tar_bytes(content):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as tar:
    for name, data in content.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def mat_bytes(**arrays):
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, arrays)
  return buffer.getvalue()


def stanford_dogs(manual_dir):
  breeds = [f'n{i:08d}-Breed_{i}' for i in range(120)]
  splits = {}
  for split, numbers in (('train', (7, 12)), ('test', (3,))):
    splits[split] = {
      f'Images/{b}/{b[:9]}_{n}.jpg': (b.lower(), picture())
      for b in breeds
      for n in numbers
    }
  files = [name for rows in splits.values() for name in rows]
  content = {
    n: data for rows in splits.values() for n, (_, data) in rows.items()
  }
  write_tar(manual_dir / 'images.tar', content)
  box = '<object><name>x</name><bndbox><xmin>2</xmin><ymin>3</ymin>{}</bndbox>'
  box = box.format('<xmax>8</xmax><ymax>12</ymax>') + '</object>'
  size = '<size><width>16</width><height>12</height><depth>3</depth></size>'
  xml = f'<annotation><folder>%s</folder>{size}{box}{box}</annotation>'.encode()
  boxes = {f'Annotation/{n[len("Images/") : -4]}': xml for n in files}
  write_tar(manual_dir / 'annotation.tar', boxes)
  lists = {}
  for name, rows in (splits | {'file': files}).items():
    column = np.empty((len(rows), 1), object)
    column[:, 0] = [file.removeprefix('Images/') for file in rows]
    lists[f'{name}_list.mat'] = mat_bytes(file_list=column)
  write_tar(manual_dir / 'lists.tar', lists)
  return splits


def oxford_flowers102(manual_dir):
  names = (
    prepare.builder_class('oxford_flowers102')(data_dir=str(manual_dir))
    .info.features['label']
    .names
  )
  rng = np.random.default_rng(0)
  label = np.tile(np.arange(1, 103, dtype=np.uint8), 3)
  number = {
    key: np.flatnonzero(np.arange(306) // 102 == part) + 1
    for part, key in enumerate(('tstid', 'trnid', 'valid'))
  }
  data = {f'jpg/image_{i:05d}.jpg': picture() for i in range(1, 307)}
  order = rng.permutation(list(data)).tolist()
  # The original is called tgz, and is one.
  write_tar(manual_dir / '102flowers.tgz', {name: data[name] for name in order})
  (manual_dir / 'imagelabels.mat').write_bytes(mat_bytes(labels=label[None]))
  (manual_dir / 'setid.mat').write_bytes(
    mat_bytes(**{key: value[None] for key, value in number.items()})
  )
  splits = {'train': 'trnid', 'validation': 'valid', 'test': 'tstid'}
  return {
    split: {
      f'image_{i:05d}.jpg': (
        names[label[i - 1] - 1],
        data[f'jpg/image_{i:05d}.jpg'],
      )
      for i in number[key].tolist()
    }
    for split, key in splits.items()
  }


def imagenet2012(manual_dir):
  names = (
    prepare.builder_class('imagenet2012')(data_dir=str(manual_dir))
    .info.features['label']
    .names
  )
  train = {f'{w}_{i}.JPEG': (w, picture()) for i, w in enumerate(names)}
  packs = {
    f'{w}.tar': tar_bytes({name: data}) for name, (w, data) in train.items()
  }
  write_tar(manual_dir / 'ILSVRC2012_img_train.tar', packs)
  validation = {
    f'ILSVRC2012_val_{i + 1:08d}.JPEG': (w, picture())
    for i, w in enumerate(reversed(names))
  }
  # They do not lie there in the order of their names.
  write_tar(
    manual_dir / 'ILSVRC2012_img_val.tar',
    {name: validation[name][1] for name in reversed(validation)},
  )
  return {'train': train, 'validation': validation}


def places365_small(manual_dir):
  names = (
    prepare.builder_class('places365_small')(data_dir=str(manual_dir))
    .info.features['label']
    .names
  )
  train = {f'data_256/{n[0]}/{n}/00000001.jpg': (n, picture()) for n in names}
  validation = {
    f'val_256/Places365_val_{i + 1:08d}.jpg': (n, picture())
    for i, n in enumerate(names)
  }
  for file, rows in (
    ('train_256_places365standard.tar', train),
    ('val_256.tar', validation),
  ):
    write_tar(manual_dir / file, {k: data for k, (_, data) in rows.items()})
  lists = {
    'places365_train_standard.txt': ''.join(
      f'/{k.removeprefix("data_256/")} {i}\n' for i, k in enumerate(train)
    ),
    'places365_val.txt': ''.join(
      f'{k.removeprefix("val_256/")} {i}\n' for i, k in enumerate(validation)
    ),
    'places365_test.txt': 'Places365_test_00000001.jpg\n',
  }
  lists = {name: text.encode() for name, text in lists.items()}
  write_tar(manual_dir / 'filelist_places365-standard.tar', lists)
  return {'train': train, 'validation': validation}


WRITERS = {
  'caltech256': (caltech256, 3),
  'imagenet2012': (imagenet2012, 1000),
  'indoor67': (indoor67, 67),
  'oxford_flowers102': (oxford_flowers102, 102),
  'places205': (places205, 3),
  'places365_small': (places365_small, 365),
  'stanford_dogs': (stanford_dogs, 120),
  'tiny_imagenet': (tiny_imagenet, 2),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path, monkeypatch):
  """(name, what the archives hold, manual_dir); counts set to the tiny ones."""
  name = request.param
  write, classes = WRITERS[name]
  manual_dir = tmp_path / 'manual'
  manual_dir.mkdir()
  splits = write(manual_dir)
  builder = prepare.builder_class(name)
  counts = {split: len(rows) for split, rows in splits.items()}
  monkeypatch.setattr(builder, 'COUNTS', types.MappingProxyType(counts))
  monkeypatch.setattr(builder, 'CLASSES', classes, raising=False)
  monkeypatch.setattr(builder, 'DIGESTS', {})
  if name == 'imagenet2012':
    labels = [label for label, _ in splits['validation'].values()]
    monkeypatch.setattr(builder, 'validation_labels', lambda self: labels)
  return name, splits, manual_dir


def test_a_builder_gives_back_what_its_archives_hold(written, tmp_path):
  name, splits, manual_dir = written
  found = prepare.prepare(name, tmp_path / 'data', manual_dir)
  assert {s: n for s, (n, _) in found.items()} == {
    split: len(rows) for split, rows in splits.items()
  }
  builder = tfds.builder(name, data_dir=str(tmp_path / 'data'))
  names = builder.info.features['label'].names
  for split, rows in splits.items():
    records = builder.as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()}
    )
    key = next(k for k in tfds_sets.TFDS_NAMES if k in builder.info.features)
    got = {
      record[key].decode(): (names[record['label']], record['image'])
      for record in records
    }
    assert got == rows
  assert 'tensorflow' not in sys.modules
  # Prepared, it needs the archives no more.
  again = prepare.prepare(name, tmp_path / 'data', None)
  assert again == found


def test_a_prepared_set_is_a_source(written, tmp_path):
  name, splits, manual_dir = written
  prepare.prepare(name, tmp_path / 'data', manual_dir)
  spec = {'kind': 'tfds', 'name': name, 'dir': str(tmp_path / 'data')}
  pool = datasets.open_pool({'x': spec | {'split': 'train'}})
  got = {
    str(file): (pool.classes[label], pool.read(i))
    for i, (file, label) in enumerate(zip(pool.ids, pool.labels, strict=True))
  }
  assert got == {
    f'x:{file}': (f'x:{name}', data)
    for file, (name, data) in splits['train'].items()
  }


def _cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(path):
  path.write_text('<html>quota exceeded</html>' * 40)


@pytest.mark.parametrize('spoil', [_cut, _text])
def test_a_spoilt_archive_gets_one_clear_line(written, tmp_path, spoil):
  name, _, manual_dir = written
  archive = max(manual_dir.iterdir(), key=lambda path: path.stat().st_size)
  spoil(archive)
  with pytest.raises(UserError) as e:
    prepare.prepare(name, tmp_path / 'data', manual_dir)
  assert str(archive) in str(e.value)
  assert 'et it again' in str(e.value)
  assert '\n' not in str(e.value)
  builder = prepare.builder_class(name)(data_dir=str(tmp_path / 'data'))
  assert not builder.is_prepared()


def _members(path):
  """{name: bytes} of an archive."""
  if path.suffix == '.zip':
    with zipfile.ZipFile(path) as archive:
      return {n: archive.read(n) for n in archive.namelist()}
  with tarfile.open(path) as archive:
    return {m.name: archive.extractfile(m).read() for m in archive}


def _write(path, content):
  if path.suffix != '.zip':
    return write_tar(path, content)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in content.items():
      archive.writestr(name, data)
  return None


def test_an_archive_that_lacks_an_image_is_refused(written, tmp_path):
  name, _, manual_dir = written
  archive = max(manual_dir.iterdir(), key=lambda path: path.stat().st_size)
  lost = {
    'caltech256': '256_ObjectCategories/056.dog/056_0003.jpg',
    'imagenet2012': 'n01440764.tar',
    'indoor67': 'Images/winecellar/d.jpg',
    'oxford_flowers102': 'jpg/image_00001.jpg',
    'places365_small': 'data_256/y/youth_hostel/00000001.jpg',
    'stanford_dogs': 'Images/n00000119-Breed_119/n00000119_7.jpg',
    'places205': 'data/vision/torralba/deeplearning/images256/y/yard/'
    'gsun_s.jpg',
    'tiny_imagenet': 'tiny-imagenet-200/val/images/val_3.JPEG',
  }
  content = _members(archive)
  content.pop(lost[name])
  _write(archive, content)
  with pytest.raises(UserError, match='incomplete'):
    prepare.prepare(name, tmp_path / 'data', manual_dir)


def _of_lists(part, change):
  """Changes the text of those members of an archive whose names hold `part`."""

  def spoil(path):
    content = _members(path)
    _write(path, {k: change(v) if part in k else v for k, v in content.items()})

  return spoil


def _without(part):
  def spoil(path):
    content = _members(path)
    _write(path, {k: v for k, v in content.items() if part not in k})

  return spoil


def _put(old, new):
  return lambda text: text.replace(old, new)


def _header(central, local, value):
  """Sets a byte of all headers of a zip, before and behind the members."""

  def spoil(path):
    data = bytearray(path.read_bytes())
    for mark, byte in ((b'PK\1\2', central), (b'PK\3\4', local)):
      at = -1
      while (at := data.find(mark, at + 1)) >= 0:
        data[at + byte] = value
    path.write_bytes(data)

  return spoil


def _numbers(**change):
  def spoil(path):
    arrays = {k: v for k, v in scipy.io.loadmat(path).items() if k[0] != '_'}
    for key, add in change.items():
      arrays[key] = arrays[key].astype(int) + add
    path.write_bytes(mat_bytes(**arrays))

  return spoil


PLACES_LISTS = 'trainvalsplit_places205.tar.gz'
TINY = 'tiny-imagenet-200.zip'


@pytest.mark.parametrize(
  ('written', 'file', 'spoil'),
  [
    ('places205', PLACES_LISTS, _of_lists('', _put(b' ', b'_'))),
    ('places205', PLACES_LISTS, _of_lists('', _put(b' ', b','))),
    ('places205', PLACES_LISTS, _of_lists('', lambda v: b'\xff' + v)),
    ('places205', PLACES_LISTS, _of_lists('', _put(b' 2', b' 7'))),
    ('places205', PLACES_LISTS, _of_lists('/v', _put(b' 2', b' 3'))),
    ('tiny_imagenet', TINY, _without('val_annotations')),
    ('tiny_imagenet', TINY, _of_lists('val_a', lambda v: v.split(b'\n', 1)[1])),
    ('tiny_imagenet', TINY, _of_lists('val_a', lambda v: b'<html>x</html>\n')),
    ('tiny_imagenet', TINY, _of_lists('val_a', lambda v: b'\xff\xfe')),
    ('tiny_imagenet', TINY, _of_lists('val_a', _put(b'l_0', b'l_9'))),
    ('tiny_imagenet', TINY, _of_lists('val_a', _put(b'n0', b'm0'))),
    ('tiny_imagenet', TINY, _of_lists('wnids', lambda v: b'n1\nn2\n')),
    ('tiny_imagenet', TINY, _of_lists('wnids', lambda v: b'n1\nn1\n')),
    ('tiny_imagenet', TINY, _header(8, 6, 1)),  # Encrypted.
    ('tiny_imagenet', TINY, _header(10, 8, 9)),  # Deflate64.
    ('oxford_flowers102', 'setid.mat', _numbers(tstid=300)),
    ('oxford_flowers102', 'setid.mat', _numbers(tstid=-1)),
    ('oxford_flowers102', 'imagelabels.mat', _numbers(labels=1)),
    ('places365_small', 'filelist_places365-standard.tar',
     _of_lists('val', _put(b' 364', b' 365'))),
    ('stanford_dogs', 'lists.tar',
     _of_lists('test', _put(b'-Breed_7/', b'-breeD_X/'))),
  ],
  indirect=['written'],
)  # fmt: skip
def test_a_list_that_is_none_gets_one_clear_line(
  written, tmp_path, file, spoil
):
  name, _, manual_dir = written
  spoil(manual_dir / file)
  with pytest.raises(UserError, match='et it again') as e:
    prepare.prepare(name, tmp_path / 'data', manual_dir)
  assert str(manual_dir / file) in str(e.value)
  assert '\n' not in str(e.value)
  assert not [p for p in (tmp_path / 'data').rglob('*') if p.is_file()]


class Killed(BaseException):
  """Nothing catches it."""


@pytest.fixture
def small_caltech(tmp_path, monkeypatch):
  """(data_dir, manual_dir) of nine images, two to a file."""
  builder = prepare.builder_class('caltech256')
  monkeypatch.setattr(builder, 'COUNTS', {'train': 9})
  monkeypatch.setattr(builder, 'CLASSES', 3)
  monkeypatch.setattr(builder, 'DIGESTS', {})
  monkeypatch.setattr(recorded, 'PER_SHARD', 2)
  (tmp_path / 'manual').mkdir()
  caltech256(tmp_path / 'manual')
  return tmp_path / 'data', tmp_path / 'manual'


def test_a_killed_preparation_goes_on_after_its_last_file(
  written, tmp_path, monkeypatch
):
  name, splits, manual_dir = written
  monkeypatch.setattr(recorded, 'PER_SHARD', 2)
  whole = prepare.prepare(name, tmp_path / 'whole', manual_dir)
  builder = prepare.builder_class(name)(data_dir=str(tmp_path / 'data'))
  features = type(builder.info.features)
  encode, seen = features.serialize_example, []

  def until(count):
    def counted(self, example):
      if len(seen) == count:
        raise Killed
      seen.append(example)
      return encode(self, example)

    return counted

  monkeypatch.setattr(features, 'serialize_example', until(3))
  with pytest.raises(Killed):
    prepare.prepare(name, tmp_path / 'data', manual_dir)
  assert not builder.is_prepared()
  seen.clear()
  monkeypatch.setattr(features, 'serialize_example', until(-1))
  assert prepare.prepare(name, tmp_path / 'data', manual_dir) == whole
  # The first file, of two images, was kept.
  assert len(seen) == sum(map(len, splits.values())) - 2


@pytest.mark.parametrize('after', [False, True])
def test_a_kill_while_a_set_gets_its_name_loses_nothing(
  small_caltech, monkeypatch, after
):
  data, manual = small_caltech
  rename = pathlib.Path.rename

  def killed(self, other):
    if after:
      rename(self, other)
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'rename', killed)
    with pytest.raises(Killed):
      prepare.prepare('caltech256', data, manual)
  shards = {p.name: p.stat().st_mtime_ns for p in data.rglob('*array_record*')}
  found = prepare.prepare('caltech256', data, manual)
  assert found['train'][0] == 9
  assert len(shards) == 5
  assert shards == {
    p.name: p.stat().st_mtime_ns for p in data.rglob('*array_record*')
  }


def test_two_preparations_of_a_set_are_not_at_work_at_once(
  small_caltech, monkeypatch
):
  data, manual = small_caltech
  write, came = recorded.write_metadata, []

  def second(*args, **about):
    with pytest.raises(UserError, match='Another prepare is at work on') as e:
      prepare.prepare('caltech256', data, manual)
    came.append(str(e.value))
    return write(*args, **about)

  monkeypatch.setattr(recorded, 'write_metadata', second)
  assert prepare.prepare('caltech256', data, manual)['train'][0] == 9
  assert len(came) == 1
  assert str(data / 'caltech256') in came[0]
  assert '\n' not in came[0]


def test_a_set_that_another_process_has_just_prepared_is_taken(
  small_caltech, monkeypatch
):
  data, manual = small_caltech
  locked = files.locked

  @contextlib.contextmanager
  def late(*args):
    with monkeypatch.context() as patch:
      patch.setattr(files, 'locked', locked)
      prepare.prepare('caltech256', data, manual)
    with locked(*args):
      yield

  monkeypatch.setattr(files, 'locked', late)
  assert prepare.prepare('caltech256', data, manual)['train'][0] == 9


def test_a_file_of_images_is_on_the_disk_before_it_has_its_name(
  small_caltech, monkeypatch
):
  synced = set()
  fsync, replace = os.fsync, os.replace

  def noted(number):
    fsync(number)
    synced.add(os.fstat(number).st_ino)

  def named(old, new):
    assert os.stat(old).st_ino in synced
    replace(old, new)
    if 'array_record' in str(new):
      shards.append(new)

  shards = []
  monkeypatch.setattr(os, 'fsync', noted)
  monkeypatch.setattr(os, 'replace', named)
  prepare.prepare('caltech256', *small_caltech)
  assert len(shards) == 5


@pytest.mark.parametrize('name', ['dataset_info.json', 'array_record-00003'])
@pytest.mark.parametrize('spoil', [_cut, pathlib.Path.unlink])
def test_a_damaged_set_is_not_taken_for_a_prepared_one(
  small_caltech, name, spoil
):
  data, manual = small_caltech
  prepare.prepare('caltech256', data, manual)
  (path,) = (p for p in data.rglob('*') if name in p.name)
  spoil(path)
  with pytest.raises(UserError, match=r'256 in .* is damaged or inc') as e:
    prepare.prepare('caltech256', data, manual)
  assert 'remove it and prepare it again' in str(e.value)
  assert '\n' not in str(e.value)


def test_passes_over_an_archive_show_how_far_they_are(
  small_caltech, monkeypatch
):
  bar, bars = progress.bar, []

  def noted(*args, **settings):
    bars.append(bar(*args, **settings))
    return bars[-1]

  monkeypatch.setattr(progress, 'bar', noted)
  prepare.prepare('caltech256', *small_caltech)
  assert [(bar.desc, bar.n, bar.total) for bar in bars] == [
    ('classes of caltech256', 9, 9),
    ('caltech256 train', 9, 9),
    ('list caltech256/1.0.0 train', 9, 9),
  ]


@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/none'])
def test_a_place_for_no_set_gets_one_clear_line(small_caltech, tmp_path, place):
  (tmp_path / 'file').write_text('x')
  _, manual = small_caltech
  with pytest.raises(UserError, match='--data_dir needs a directory') as e:
    prepare.prepare('caltech256', tmp_path / place, manual)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_was_written_is_kept_while_an_archive_cannot_be_read(
  small_caltech, monkeypatch, number
):
  data, manual = small_caltech
  (archive,) = manual.iterdir()
  members, passes = archives._members, []

  def failing(opened):
    passes.append(opened)
    for i, member in enumerate(members(opened)):
      # The first pass is for the names of the classes.
      if len(passes) == 2 and i == 6:
        raise OSError(number, os.strerror(number))
      yield member

  with monkeypatch.context() as patch:
    patch.setattr(archives, '_members', failing)
    with pytest.raises(UserError, match='cannot be read now') as e:
      prepare.prepare('caltech256', data, manual)
  assert os.strerror(number) in str(e.value)
  assert '\n' not in str(e.value)
  kept = {p.name for p in data.rglob('*array_record-*') if p.name[0] != '.'}
  assert kept
  # Nor is it lost while the archive is away.
  archive.rename(manual / 'away')
  with pytest.raises(UserError, match='is not there'):
    prepare.prepare('caltech256', data, manual)
  (manual / 'away').rename(archive)
  times = {p: p.stat().st_mtime_ns for p in data.rglob('*array_record-*')}
  assert kept <= {p.name for p in times}
  prepare.prepare('caltech256', data, manual)
  after = {p.name: p.stat().st_mtime_ns for p in data.rglob('*array_record-*')}
  assert all(after[p.name] == t for p, t in times.items() if p.name in kept)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize('good', [0, 600])
@pytest.mark.parametrize('kind', ['x.zip', 'x.tar', 'x.tar.gz'])
def test_an_archive_whose_disk_is_away_is_not_called_damaged(
  tmp_path, monkeypatch, kind, good, number
):
  path, content = tmp_path / kind, {f'{i}.jpg': picture() for i in range(9)}
  if kind == 'x.zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for name, data in content.items():
        archive.writestr(name, data)
  else:
    write_tar(path, content)
  assert dict(archives.read(path)) == content

  def failing(self, *args):
    return faults.opened(self, number, good)

  monkeypatch.setattr(pathlib.Path, 'open', failing)
  with pytest.raises(UserError, match=f'{kind} cannot be read now'):
    list(archives.read(path))
  with pytest.raises(UserError, match=f'{kind} cannot be read now'):
    archives.check_digest(path, '0' * 32)


def test_what_a_killed_preparation_left_of_other_archives_is_not_used(
  tmp_path, monkeypatch
):
  builder = prepare.builder_class('caltech256')
  monkeypatch.setattr(builder, 'COUNTS', {'train': 9})
  monkeypatch.setattr(builder, 'CLASSES', 3)
  monkeypatch.setattr(builder, 'DIGESTS', {})
  monkeypatch.setattr(recorded, 'PER_SHARD', 2)
  (tmp_path / 'manual').mkdir()
  caltech256(tmp_path / 'manual')
  with monkeypatch.context() as patch:
    patch.setattr(recorded, 'write_metadata', lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare.prepare('caltech256', tmp_path / 'data', tmp_path / 'manual')
  rows = caltech256(tmp_path / 'manual')['train']
  prepare.prepare('caltech256', tmp_path / 'data', tmp_path / 'manual')
  spec = {'kind': 'tfds', 'name': 'caltech256', 'dir': str(tmp_path / 'data')}
  pool = datasets.open_pool({'x': spec | {'split': 'train'}})
  assert sorted(map(pool.read, range(9))) == sorted(d for _, d in rows.values())


@pytest.mark.parametrize('algorithm', ['md5', 'sha256'])
def test_an_archive_has_the_published_digest(tmp_path, monkeypatch, algorithm):
  builder = prepare.builder_class('caltech256')
  monkeypatch.setattr(builder, 'COUNTS', {'train': 9})
  monkeypatch.setattr(builder, 'CLASSES', 3)
  caltech256(tmp_path)
  archive = tmp_path / '256_ObjectCategories.tar'
  data = archive.read_bytes()
  digest = hashlib.new(algorithm, data).hexdigest()
  monkeypatch.setattr(builder, 'DIGESTS', {archive.name: digest})
  # A bit in an image, which no count reveals.
  archive.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
  with pytest.raises(UserError, match=f'{algorithm} {digest}.*--skip_digests'):
    prepare.prepare('caltech256', tmp_path / 'data', tmp_path)
  prepare.prepare('caltech256', tmp_path / 'other', tmp_path, digests=False)
  archive.write_bytes(data)
  prepare.prepare('caltech256', tmp_path / 'data', tmp_path)


def test_published_digests_are_of_archives_that_are_read():
  for name in prepare.NAMES:
    builder = prepare.builder_class(name)
    for archive, digest in builder.DIGESTS.items():
      read = archive in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
      assert read or archive == 'test_256.tar'
      assert len(bytes.fromhex(digest)) in (16, 32)


def test_sets_of_tfds_stay_what_tfds_says():
  for name in (
    'imagenet2012', 'oxford_flowers102', 'places365_small', 'stanford_dogs'
  ):  # fmt: skip
    ours = prepare.builder_class(name)
    theirs = tfds.builder_cls(name)
    assert issubclass(ours, theirs)
    assert (ours.name, ours.VERSION) == (theirs.name, theirs.VERSION)


def test_tfds_knows_the_class_of_every_validation_image(tmp_path):
  builder = prepare.builder_class('imagenet2012')(data_dir=str(tmp_path))
  labels = builder.validation_labels()
  names = builder.info.features['label'].names
  assert sorted(labels) == sorted(names * 50)
  assert labels[0] == 'n01751748'  # ILSVRC2012_val_00000001.JPEG: a sea snake


def test_dogs_keep_their_boxes(tmp_path, monkeypatch):
  builder = prepare.builder_class('stanford_dogs')
  monkeypatch.setattr(builder, 'COUNTS', {'train': 240, 'test': 120})
  monkeypatch.setattr(builder, 'DIGESTS', {})
  stanford_dogs(tmp_path)
  prepare.prepare('stanford_dogs', tmp_path / 'data', tmp_path)
  dogs = tfds.builder('stanford_dogs', data_dir=str(tmp_path / 'data'))
  records = dogs.as_data_source(
    'test', decoders={'image': tfds.decode.SkipDecoding()}
  )
  # ymin, xmin, ymax, xmax of a picture 12 high and 16 wide.
  want = np.array([[3 / 12, 2 / 16, 12 / 12, 8 / 16]] * 2, np.float32)
  np.testing.assert_array_equal(records[0]['objects']['bbox'], want)


def test_flowers_train_with_their_validation_images(tmp_path, monkeypatch):
  builder = prepare.builder_class('oxford_flowers102')
  counts = {'train': 102, 'validation': 102, 'test': 102}
  monkeypatch.setattr(builder, 'COUNTS', counts)
  monkeypatch.setattr(builder, 'DIGESTS', {})
  rows = oxford_flowers102(tmp_path)
  prepare.prepare('oxford_flowers102', tmp_path / 'data', tmp_path)
  train, test = datasets.open_target(
    {
      'kind': 'tfds',
      'name': 'oxford_flowers102',
      'dir': str(tmp_path / 'data'),
      'train': 'train+validation',
      'test': 'test',
    },
    seed=0,
  )
  prefix = 'target:train/'
  got = {
    str(name).removeprefix(prefix): (train.classes[label], train.read(i))
    for i, (name, label) in enumerate(zip(train.ids, train.labels, strict=True))
  }
  assert got == rows['train'] | rows['validation']
  assert len(test) == 102


def test_caltech_is_drawn_by_class_and_seed(tmp_path, monkeypatch):
  builder = prepare.builder_class('caltech256')
  monkeypatch.setattr(builder, 'COUNTS', {'train': 9})
  monkeypatch.setattr(builder, 'CLASSES', 3)
  monkeypatch.setattr(builder, 'DIGESTS', {})
  caltech256(tmp_path)
  prepare.prepare('caltech256', tmp_path / 'data', tmp_path)
  spec = {
    'kind': 'tfds',
    'name': 'caltech256',
    'dir': str(tmp_path / 'data'),
    'train': 'train',
    'per_class': 2,
  }
  draws = [datasets.open_target(spec, seed) for seed in (0, 0, 1, 2, 3)]
  for train, test in draws:
    assert not any('clutter' in name for name in train.classes)
    assert np.bincount(train.labels).tolist() == [2, 2, 2]
    assert len(test) == 3
    assert not set(train.ids) & set(test.ids)
  digests = [train.digest for train, _ in draws]
  assert digests[0] == digests[1]
  assert len(set(digests)) > 1


def test_what_must_be_there_is_named(written, tmp_path):
  name, _, manual_dir = written
  builder = prepare.builder_class(name)
  archive = max(manual_dir.iterdir(), key=lambda path: path.stat().st_size)
  assert archive.name in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  with pytest.raises(UserError, match=archive.name):
    prepare.prepare(name, tmp_path / 'data', None)
  archive.unlink()
  (manual_dir / 'other').touch()
  with pytest.raises(UserError, match=f'{archive.name}.* is not there'):
    prepare.prepare(name, tmp_path / 'data', manual_dir)


def test_the_paper_s_counts_are_the_ones_checked():
  counts = {k: dict(prepare.builder_class(k).COUNTS) for k in prepare.NAMES}
  assert counts == {
    'caltech256': {'train': 30_607 - 827},
    'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
    'indoor67': {'train': 67 * 80, 'test': 67 * 20},
    'oxford_flowers102': {'train': 1020, 'validation': 1020, 'test': 6149},
    'places205': {'train': 2_448_873, 'val': 205 * 100},
    'places365_small': {'train': 1_803_460, 'validation': 365 * 100},
    'stanford_dogs': {'train': 120 * 100, 'test': 8_580},
    'tiny_imagenet': {'train': 200 * 500, 'val': 200 * 50},
  }


def test_an_unknown_set_gets_one_clear_line(tmp_path):
  with pytest.raises(UserError, match="tiny_imagenet; 'cifar' came"):
    prepare.prepare('cifar', tmp_path, None)
