"""Each builder on a tiny archive in the layout of the original."""

import io
import itertools
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sjft_jax import prepare
from sjft_jax.data import datasets
from sjft_jax.data.builders.indoor67 import indoor67_dataset_builder
from sjft_jax.errors import UserError

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


WRITERS = {
  'caltech256': (caltech256, 3),
  'indoor67': (indoor67, 67),
  'places205': (places205, 3),
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
  builder = prepare.builders()[name]
  counts = {split: len(rows) for split, rows in splits.items()}
  monkeypatch.setattr(builder, 'COUNTS', types.MappingProxyType(counts))
  monkeypatch.setattr(builder, 'CLASSES', classes, raising=False)
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
    got = {
      record['file_name'].decode(): (names[record['label']], record['image'])
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
  builder = prepare.builders()[name](data_dir=str(tmp_path / 'data'))
  assert not builder.is_prepared()


def test_an_archive_that_lacks_an_image_is_refused(written, tmp_path):
  name, _, manual_dir = written
  kind = zipfile if name == 'tiny_imagenet' else tarfile
  archive = max(manual_dir.iterdir(), key=lambda path: path.stat().st_size)
  if kind is zipfile:
    with zipfile.ZipFile(archive) as file:
      content = {n: file.read(n) for n in file.namelist()}
    content.pop('tiny-imagenet-200/val/images/val_3.JPEG')
    with zipfile.ZipFile(archive, 'w') as file:
      for key, data in content.items():
        file.writestr(key, data)
  else:
    with tarfile.open(archive) as file:
      content = {m.name: file.extractfile(m).read() for m in file}
    lost = {
      'caltech256': '256_ObjectCategories/056.dog/056_0003.jpg',
      'indoor67': 'Images/winecellar/d.jpg',
      'places205': 'data/vision/torralba/deeplearning/images256/y/yard/'
      'gsun_s.jpg',
    }
    content.pop(lost[name])
    write_tar(archive, content)
  with pytest.raises(UserError, match='incomplete'):
    prepare.prepare(name, tmp_path / 'data', manual_dir)


def test_what_must_be_there_is_named(written, tmp_path):
  name, _, manual_dir = written
  builder = prepare.builders()[name]
  archive = max(manual_dir.iterdir(), key=lambda path: path.stat().st_size)
  assert archive.name in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  with pytest.raises(UserError, match=archive.name):
    prepare.prepare(name, tmp_path / 'data', None)
  archive.unlink()
  (manual_dir / 'other').touch()
  with pytest.raises(UserError, match=f'{archive.name}.* is not there'):
    prepare.prepare(name, tmp_path / 'data', manual_dir)


def test_the_paper_s_counts_are_the_ones_checked():
  counts = {k: dict(b.COUNTS) for k, b in prepare.builders().items()}
  assert counts == {
    'caltech256': {'train': 30_607 - 827},
    'indoor67': {'train': 67 * 80, 'test': 67 * 20},
    'places205': {'train': 2_448_873, 'val': 205 * 100},
    'tiny_imagenet': {'train': 200 * 500, 'val': 200 * 50},
  }


def test_an_unknown_set_gets_one_clear_line(tmp_path):
  with pytest.raises(UserError, match="tiny_imagenet; 'cifar' came"):
    prepare.prepare('cifar', tmp_path, None)
