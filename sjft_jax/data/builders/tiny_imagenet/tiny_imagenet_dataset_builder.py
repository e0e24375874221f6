"""Tiny-ImageNet as a TFDS builder."""

import collections
import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

ARCHIVE = 'tiny-imagenet-200.zip'
PAGE = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'


class Builder(archives.Builder):
  """Tiny-ImageNet, 64 x 64 pixels, without its unlabelled test images."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {ARCHIVE} (240 MB) into the manual directory, from {PAGE}.'
  )
  CLASSES = 200
  COUNTS = types.MappingProxyType({'train': 100_000, 'val': 10_000})
  DIGESTS = types.MappingProxyType(
    {ARCHIVE: '90528d7ca1a48142e341f4ef8d21d0de'}
  )

  def _info(self):
    return archives.info(
      self,
      tfds.features.ClassLabel(num_classes=self.CLASSES),
      homepage=PAGE,
      citation='Down-scaled for the course CS231n, Stanford, from ILSVRC 2012: '
      'Russakovsky et al., IJCV 2015.',
    )

  def _splits(self, manual_dir):
    (path,) = archives.find(manual_dir, ARCHIVE)
    texts = collections.defaultdict(str)
    for name, data in archives.read(path):
      if name.endswith(('/wnids.txt', '/val_annotations.txt')):
        with archives.parsing(path):
          texts[name.rpartition('/')[2]] = data.decode()
    names = sorted(set(texts['wnids.txt'].split()))
    archives.check('classes', len(names), self.CLASSES, path)
    self.info.features['label'].names = names
    rows = texts['val_annotations.txt'].splitlines()
    with archives.parsing(path):
      class_of = dict(row.split('\t')[:2] for row in rows if row)
    archives.check('names of val', len(class_of), self.COUNTS['val'], path)
    return {
      split: self._generate_examples(path, split, class_of)
      for split in self.COUNTS
    }

  def _generate_examples(self, path, split, class_of):
    count, classes = 0, frozenset(self.info.features['label'].names)
    for name, data in archives.read(path):
      folders, _, file = name.rpartition('/')
      if not file.endswith('.JPEG') or f'/{split}/' not in f'/{name}':
        continue
      count += 1
      with archives.parsing(path):
        label = class_of[file] if split == 'val' else folders.split('/')[-2]
      archives.check_known('classes', [label], classes, path)
      yield archives.example(file, label, data)
    archives.check(f'{split} images', count, self.COUNTS[split], path)
