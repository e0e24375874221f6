"""Places 205 as a TFDS builder."""

import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

ARCHIVE = 'imagesPlaces205_resize.tar.gz'
LISTS = 'trainvalsplit_places205.tar.gz'
PAGE = 'http://places.csail.mit.edu/downloadData.html'
_ROOT = 'images256/'  # The names of the lists begin after it.


class Builder(archives.Builder):
  """Places 205, resized by its authors to 256 x 256 pixels."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {ARCHIVE} (126 GB) and {LISTS} into the manual directory, from '
    f'{PAGE}, after agreeing to its terms.'
  )
  CLASSES = 205
  COUNTS = types.MappingProxyType({'train': 2_448_873, 'val': 20_500})

  def _info(self):
    return archives.info(
      self,
      tfds.features.ClassLabel(num_classes=self.CLASSES),
      homepage=PAGE,
      citation='Zhou, Lapedriza, Xiao, Torralba, Oliva: Learning deep features '
      'for scene recognition using Places database. NIPS 2014.',
    )

  def _splits(self, manual_dir):
    archive, lists = archives.find(manual_dir, ARCHIVE, LISTS)
    label_of = {split: {} for split in self.COUNTS}
    for name, data in archives.read(lists):
      split = name.rpartition('/')[2].removesuffix('_places205.csv')
      if split in label_of:
        with archives.parsing(lists):
          rows = (line.split() for line in data.decode().splitlines())
          label_of[split] = {row[0]: int(row[1]) for row in rows if row}
    for split, count in self.COUNTS.items():
      labels = label_of[split].values()
      archives.check(f'{split} images', len(labels), count, lists)
      archives.check_known('classes', labels, range(self.CLASSES), lists)
    class_of = {
      label: name.rpartition('/')[0]
      for name, label in label_of['train'].items()
    }
    archives.check('classes', len(class_of), self.CLASSES, lists)
    names = [class_of[label] for label in sorted(class_of)]
    self.info.features['label'].names = names
    return {
      split: self._generate_examples(archive, wanted)
      for split, wanted in label_of.items()
    }

  def _generate_examples(self, archive, wanted):
    for name, data in archives.read(archive):
      name = name.rpartition(_ROOT)[2]
      if name in wanted:
        yield archives.example(name, wanted.pop(name), data)
    archives.check_all_seen(wanted, archive)
