"""Places365-Standard, small images, as TFDS has it, without TensorFlow."""

import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

TRAIN, VALIDATION = 'train_256_places365standard.tar', 'val_256.tar'
LISTS = 'filelist_places365-standard.tar'
PAGE = 'http://data.csail.mit.edu/places/places365/'
# Archive, its list, and the folder that the names of the list begin after.
_PARTS = {
  'train': (TRAIN, 'places365_train_standard.txt', 'data_256/'),
  'validation': (VALIDATION, 'places365_val.txt', 'val_256/'),
}

_TFDS = tfds.builder_cls('places365_small')


class Builder(archives.Builder, _TFDS, skip_registration=True):
  """Places 365 at 256 x 256 pixels, without its unlabelled test images."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {TRAIN} (26 GB), {VALIDATION} (525 MB) and {LISTS} (67 MB) into the '
    f'manual directory, from {PAGE}.'
  )
  COUNTS = types.MappingProxyType({'train': 1_803_460, 'validation': 36_500})
  DIGESTS = archives.published(_TFDS)

  def _splits(self, manual_dir):
    *paths, lists = archives.find(manual_dir, TRAIN, VALIDATION, LISTS)
    texts = {
      name.rpartition('/')[2]: data for name, data in archives.read(lists)
    }
    found = {}
    for path, (split, part) in zip(paths, _PARTS.items(), strict=True):
      _, file, root = part
      rows = texts.get(file, b'').decode('utf-8', 'replace').splitlines()
      rows = [row.rpartition(' ') for row in rows if row]
      label_of = {
        name.lstrip('/'): int(label)
        for name, _, label in rows
        if label.isdecimal()
      }
      archives.check(
        f'{split} images', len(label_of), self.COUNTS[split], lists
      )
      classes = self.info.features['label'].num_classes
      archives.check_known('classes', label_of.values(), range(classes), lists)
      found[split] = self._generate_examples(path, label_of, root)
    return found

  def _generate_examples(self, archive, wanted, root):
    for path, data in archives.read(archive):
      name = path.rpartition(root)[2]
      if name in wanted:
        label, key = wanted.pop(name), root + name
        yield key, {'image': data, 'label': label, 'filename': key}
    archives.check_all_seen(wanted, archive)
