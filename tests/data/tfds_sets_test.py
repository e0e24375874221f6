import errno
import io
import os
import shutil
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sjft_jax import errors, paths, progress
from sjft_jax.data import datasets, pipelines, recorded, tfds_sets
from tests.data import trees


class SjftTiny(tfds.core.GeneratorBasedBuilder):
  """Five training and two test images, with or without file names."""

  VERSION = tfds.core.Version('1.2.0')
  BUILDER_CONFIGS = (
    tfds.core.BuilderConfig(name='named'),
    tfds.core.BuilderConfig(name='unnamed'),
  )

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
    }
    if self.builder_config.name == 'named':
      features['file_name'] = tfds.features.Text()
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(5),
      'test': self._generate_examples(2),
    }

  def _generate_examples(self, count):
    for i in range(count):
      example = {'image': io.BytesIO(_picture(i)), 'label': i % 2}
      if self.builder_config.name == 'named':
        example['file_name'] = f'{i}.png'
      yield i, example


def _picture(i):
  buffer = io.BytesIO()
  Image.fromarray(np.full((3, 4, 3), i, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp('tfds'))
  for config in ('named', 'unnamed'):
    builder = SjftTiny(
      data_dir=directory, config=config, file_format='array_record'
    )
    builder.download_and_prepare()
  return directory


def _tfds_spec(directory, config):
  return {
    'kind': 'tfds',
    'name': f'sjft_tiny/{config}',
    'dir': directory,
    'train': 'train',
    'test': 'test',
  }


def test_tfds_is_read_without_tensorflow(prepared):
  train, test = datasets.open_target(_tfds_spec(prepared, 'named'), seed=0)
  assert train.classes == test.classes == ('cat', 'dog')
  # TFDS stores records in the order of hashed keys.
  names = {f'target:train/{i}.png' for i in range(5)}
  assert {*train.ids} == names
  assert len(test) == 2
  for i in range(len(train)):
    number = int(train.ids[i].removeprefix('target:train/')[0])
    assert train.read(i) == _picture(number)
    assert train.labels[i] == number % 2
    assert train.sizes[i] == len(_picture(number))
  assert '1.2.0' in train.version
  assert 'tensorflow' not in sys.modules


@pytest.fixture
def of_records(tmp_path, monkeypatch):
  """Function of labels, names and features to the pool of such a TFDS set."""
  reads = []

  def make(labels, names=('cat', 'dog'), **features):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=names),
    } | features
    records = [{'image': b'x', 'label': label} for label in labels]
    info = types.SimpleNamespace(
      splits={'test': 2}, features=features, full_name='any/1.0.0'
    )

    class Records(list):
      def __getitem__(self, i):
        reads.append(i)
        return super().__getitem__(i)

      def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    builder = types.SimpleNamespace(
      info=info,
      data_dir=str(shard.parent),
      as_data_source=lambda *args, **kwargs: Records(records),
    )
    monkeypatch.setattr(tfds, 'builder', lambda *args, **kwargs: builder)
    spec = {'kind': 'tfds', 'name': 'any', 'dir': '', 'split': 'test'}
    return datasets.open_pool({'main': spec})

  shard = tmp_path / 'any' / 'any-test.array_record-00000-of-00001'
  trees.write(tmp_path, shard)
  make.reads, make.shard = reads, shard
  monkeypatch.setattr(tfds_sets, '_opened', {})
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return make


@pytest.mark.parametrize('labels', [(0, -1), (-1, -1), ()])
def test_images_without_labels_are_refused(of_records, labels):
  with pytest.raises(errors.UserError, match='needs images with labels'):
    of_records(labels)


@pytest.mark.parametrize(
  ('feature', 'kind'),
  [
    ('label', tfds.features.Scalar(dtype=np.int64)),
    ('label', tfds.features.Text()),
    ('label', tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2))),
    ('image', tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8)),
  ],
)
def test_other_features_are_refused_before_they_are_read(
  of_records, feature, kind
):
  said = rf'image \(Image\) .*{feature} \({type(kind).__name__}\)'
  with pytest.raises(errors.UserError, match=said) as e:
    of_records((0, 1), **{feature: kind})
  assert '\n' not in str(e.value)
  assert not of_records.reads


def test_names_that_no_image_has_are_no_classes(of_records):
  pool = of_records((3, 1, 3), names=tuple('abcde'))
  assert pool.classes == ('main:b', 'main:d')
  assert pool.labels.tolist() == [1, 0, 1]
  assert pool.labels.dtype == np.int32
  os.utime(of_records.shard, ns=(1, 1))
  assert of_records((1, 0)).classes == ('main:cat', 'main:dog')


def test_the_images_of_a_prepared_set_are_read_once_to_list_them(
  of_records, monkeypatch
):
  first = of_records((0, 1, 1))
  assert of_records.reads == [0, 1, 2]
  again = of_records((0, 1, 1))
  monkeypatch.setattr(tfds_sets, '_opened', {})  # Another process.
  later = of_records((0, 1, 1))
  assert of_records.reads == [0, 1, 2]
  assert first.digest == again.digest == later.digest
  assert later.read(1) == b'x'
  # What says that they are other records: a file's time, or their number.
  os.utime(of_records.shard, ns=(1, 1))
  assert of_records((1, 0, 0)).labels.tolist() == [1, 0, 0]
  monkeypatch.setattr(tfds_sets, '_opened', {})
  assert len(of_records((1, 0))) == 2


@pytest.mark.parametrize('damage', [b'', b'no archive', None])
def test_a_cache_that_cannot_be_used_is_none(of_records, monkeypatch, damage):
  digest = of_records((0, 1)).digest
  (kept,) = (paths.cache() / 'tfds').iterdir()
  kept.unlink()
  if damage is None:
    kept.mkdir()
  else:
    kept.write_bytes(damage)
  monkeypatch.setattr(tfds_sets, '_opened', {})
  assert of_records((0, 1)).digest == digest
  monkeypatch.setattr(tfds_sets, '_opened', {})
  monkeypatch.setenv('XDG_CACHE_HOME', os.devnull)
  assert of_records((0, 1)).digest == digest


def test_the_place_of_a_prepared_set_may_be_written_in_several_ways(
  prepared, monkeypatch
):
  monkeypatch.setenv('HOME', os.path.dirname(prepared))
  spec = _tfds_spec(prepared, 'named') | {'split': 'train'}
  home = spec | {'dir': f'~/{os.path.basename(prepared)}'}
  plain, found = (datasets.open_pool({'x': s}) for s in (spec, home))
  assert found.digest == plain.digest
  for other in (home, spec | {'dir': f'{prepared}/'}):
    with pytest.raises(errors.UserError, match='are the same'):
      datasets.open_pool({'x': spec, 'y': other})


def test_tfds_without_file_names_counts(prepared):
  train, _ = datasets.open_target(_tfds_spec(prepared, 'unnamed'), seed=0)
  assert train.ids.tolist() == [f'target:train/{i:08d}' for i in range(5)]
  named, _ = datasets.open_target(_tfds_spec(prepared, 'named'), seed=0)
  assert named.digest != train.digest


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': 'sjft_unknown'}, "needs a TFDS set; 'sjft_unknown' is neither"),
    ({'name': ''}, "needs a TFDS set; '' is neither"),
    ({'name': 'mnist:9.0.0'}, "needs a TFDS set; 'mnist:9.0.0' is neither"),
    ({'name': 'caltech101'}, 'needs caltech101 prepared as array_record'),
    ({'test': 'val'}, "needs a split .*train, test.*; 'val' came"),
  ],
)
def test_unusable_tfds_sets_get_one_clear_line(prepared, change, message):
  spec = _tfds_spec(prepared, 'named') | change
  with pytest.raises(errors.UserError, match=message) as e:
    datasets.open_target(spec, seed=0)
  assert '\n' not in str(e.value)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A set of six images that no builder is registered for."""
  directory = tmp_path_factory.mktemp('plain') / 'plain' / '1.0.0'
  directory.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
      'file_name': tfds.features.Text(),
    }
  )
  rows = [
    {'image': _picture(i), 'label': i % 2, 'file_name': f'{i}.png'}
    for i in range(6)
  ]
  info = recorded.write_split(directory, 'plain', 'train', features, rows, 6)
  recorded.write_metadata(
    directory,
    features,
    [info],
    version='1.0.0',
    description='',
    homepage='',
    citation='',
  )
  return directory


@pytest.fixture
def copied(plain, tmp_path, monkeypatch):
  """(its directory, function that opens it, as a process that has not yet)."""
  shutil.copytree(plain, tmp_path / 'plain' / '1.0.0')

  def opened():
    with monkeypatch.context() as patch:
      patch.setattr(tfds_sets, '_opened', {})
      spec = {'kind': 'tfds', 'name': 'plain', 'dir': str(tmp_path)}
      return datasets.open_pool({'x': spec | {'split': 'train'}})

  return tmp_path / 'plain' / '1.0.0', opened


SHARD = 'plain-train.array_record-00000-of-00001'


def _flipped(data, at):
  return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
  ('file', 'spoil'),
  [
    (SHARD, lambda data: data[: len(data) // 2]),
    (SHARD, lambda data: data[:-1]),
    (SHARD, lambda data: b''),
    (SHARD, lambda data: _flipped(data, data.index(_picture(3)))),
    (SHARD, None),
    ('dataset_info.json', lambda data: data[:50]),
    ('dataset_info.json', lambda data: b'<html>'),
    ('dataset_info.json', None),
    ('label.labels.txt', lambda data: b'cat'),
  ],
)
def test_a_damaged_set_gets_one_clear_line(copied, file, spoil):
  directory, opened = copied
  assert len(opened()) == 6
  data = (directory / file).read_bytes()
  (directory / file).unlink()
  if spoil:
    (directory / file).write_bytes(spoil(data))
  said = r'plain in \S+ is damaged or incomplete .*: remove it and prepare it'
  with pytest.raises(errors.UserError, match=said) as e:
    opened()
  assert '\n' not in str(e.value)
  assert 'Errno' not in str(e.value)


@pytest.mark.parametrize('data', [b'{', b'{}', b'\xff\xfe', None])
def test_a_set_without_its_features_is_not_prepared(copied, data):
  directory, opened = copied
  (directory / 'features.json').unlink()
  if data:
    (directory / 'features.json').write_bytes(data)
  with pytest.raises(errors.UserError, match='nor prepared as a whole'):
    opened()


def test_an_image_that_was_damaged_since_it_was_listed_is_bad(copied):
  directory, opened = copied
  opened()
  shard = directory / SHARD
  stat, data = shard.stat(), shard.read_bytes()
  shard.write_bytes(_flipped(data, data.index(_picture(3))))
  os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  pool = opened()
  with pytest.raises(paths.DamagedError, match='damaged in its file'):
    pool.read(3)
  bad = dict(pipelines.find_bad(pool, threads=1))
  assert [i for i, reason in bad.items() if reason] == [3]
  assert bad[3].startswith('cannot be read: damaged in its file')


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_set_whose_disk_is_away_is_not_called_damaged(
  copied, monkeypatch, number
):
  _, opened = copied
  pool = opened()
  message = f'pread() failed: {os.strerror(number)}; reading x; at byte 0'

  def failing(self, i):
    raise RuntimeError(message)

  source = tfds.core.data_sources.array_record.ArrayRecordDataSource
  monkeypatch.setattr(source, '__getitem__', failing)
  with pytest.raises(OSError, match=os.strerror(number)) as e:
    pool.read(0)
  assert paths.is_transient(e.value)
  ((_, reason), *_) = pipelines.find_bad(pool, threads=1)
  assert paths.may_pass(reason)
  monkeypatch.setenv('XDG_CACHE_HOME', os.devnull)
  said = rf'plain in \S+ cannot be read now .*{os.strerror(number)}'
  with pytest.raises(paths.Unreadable, match=said):
    opened()


def test_listing_a_set_shows_how_far_it_is(copied, monkeypatch):
  _, opened = copied
  bar, bars = progress.bar, []

  def noted(*args, **settings):
    bars.append(bar(*args, **settings))
    return bars[-1]

  monkeypatch.setattr(progress, 'bar', noted)
  monkeypatch.setenv('XDG_CACHE_HOME', os.devnull)
  opened()
  seen = [(bar.desc, bar.n, bar.total) for bar in bars]
  assert seen == [('list plain/1.0.0 train', 6, 6)]


def test_prepared_sets_must_lie_on_a_disk(bucket):
  spec = {'kind': 'tfds', 'name': 'any', 'dir': 'gs://b/tfds', 'split': 'train'}
  with pytest.raises(errors.UserError, match='must lie on a disk'):
    datasets.open_pool({'main': spec})
