"""Oxford Flowers 102 as TFDS has it, read without TensorFlow."""

import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

IMAGES, LABELS, SPLITS = '102flowers.tgz', 'imagelabels.mat', 'setid.mat'
PAGE = 'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/'
KEYS = {'train': 'trnid', 'validation': 'valid', 'test': 'tstid'}

_TFDS = tfds.builder_cls('oxford_flowers102')


class Builder(archives.Builder, _TFDS, skip_registration=True):
  """Oxford Flowers 102 in its official splits."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {IMAGES} (345 MB), {LABELS} and {SPLITS} into the manual directory, '
    f'from {PAGE}.'
  )
  COUNTS = types.MappingProxyType(
    {'train': 1020, 'validation': 1020, 'test': 6149}
  )
  DIGESTS = archives.published(_TFDS)

  def _splits(self, manual_dir):
    images, labels, splits = archives.find(manual_dir, IMAGES, LABELS, SPLITS)
    label = archives.read_mat(archives.read_whole(labels), labels, 'labels')
    label = label['labels']
    archives.check('labels', label.size, sum(self.COUNTS.values()), labels)
    classes = range(1, self.info.features['label'].num_classes + 1)
    archives.check_known('classes', label.ravel().tolist(), classes, labels)
    numbers = archives.read_mat(
      archives.read_whole(splits), splits, *KEYS.values()
    )
    for split, count in self.COUNTS.items():
      archives.check(
        f'{split} images', numbers[KEYS[split]].size, count, splits
      )
      found = numbers[KEYS[split]].ravel().tolist()
      archives.check_known('images', found, range(1, label.size + 1), splits)
    return {
      split: self._generate_examples(
        images,
        {
          f'image_{i:05d}.jpg': int(label.flat[i - 1]) - 1
          for i in map(int, numbers[KEYS[split]].flat)
        },
      )
      for split in self.COUNTS
    }

  def _generate_examples(self, archive, wanted):
    for path, data in archives.read(archive):
      name = path.rpartition('/')[2]
      if name in wanted:
        yield archives.example(name, wanted.pop(name), data)
    archives.check_all_seen(wanted, archive)
