"""Caltech 256 as a TFDS builder."""

import re
import types

import tensorflow_datasets as tfds

from sjft_jax import progress
from sjft_jax.data.builders import archives

ARCHIVE = '256_ObjectCategories.tar'
PAGE = 'https://data.caltech.edu/records/nyy15-4j048'
# What else lies in the archive (056.dog/greg, 198.spider/RENAME2) is no image
# of the set.
_IMAGE = re.compile(r'(?:.*/)?((\d{3})\.[^/]+)/\2_\d{4}\.jpg')
_CLUTTER = '257'


class Builder(archives.Builder):
  """Caltech 256 in one split, without its clutter class."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {ARCHIVE} (1.2 GB) into the manual directory, from {PAGE}.'
  )
  CLASSES = 256
  COUNTS = types.MappingProxyType({'train': 29_780})
  DIGESTS = types.MappingProxyType(
    {ARCHIVE: '67b4f42ca05d46448c6bb8ecd2220f6d'}
  )

  def _info(self):
    return archives.info(
      self,
      tfds.features.ClassLabel(num_classes=self.CLASSES),
      homepage=PAGE,
      citation='Griffin, Holub, Perona: Caltech-256 object category dataset. '
      'California Institute of Technology, 2007.',
    )

  def _splits(self, manual_dir):
    (path,) = archives.find(manual_dir, ARCHIVE)
    names = set()
    count = self.COUNTS['train']
    with progress.bar(count, f'classes of {self.name}') as bar:
      for name, _ in self._images(path):
        names.add(name.partition('/')[0])
        bar.update()
    archives.check('classes', len(names), self.CLASSES, path)
    self.info.features['label'].names = sorted(names)
    return {'train': self._generate_examples(path)}

  def _generate_examples(self, path):
    count = 0
    for name, data in self._images(path):
      count += 1
      yield archives.example(name, name.partition('/')[0], data)
    archives.check('images', count, self.COUNTS['train'], path)

  def _images(self, path):
    for name, data in archives.read(path):
      match = _IMAGE.fullmatch(name)
      if match and match[2] != _CLUTTER:
        yield f'{match[1]}/{name.rpartition("/")[2]}', data
