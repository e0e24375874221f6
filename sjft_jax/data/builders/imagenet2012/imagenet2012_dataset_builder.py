"""ImageNet ILSVRC 2012 as TFDS has it, read without TensorFlow."""

import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
PAGE = 'https://image-net.org/download-images'

_TFDS = tfds.builder_cls('imagenet2012')
# Classes of the validation images in the order of their names, inside TFDS.
_LABELS = 'datasets/imagenet2012/validation_labels.txt'


class Builder(archives.Builder, _TFDS, skip_registration=True):
  """ImageNet ILSVRC 2012, training and validation images.

  Images are kept as they lie in the archive: TFDS turns 22 of them from CMYK
  into RGB and one from PNG into JPEG, by means of TensorFlow. The test images
  are left out, as they have no labels.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {TRAIN} (148 GB) and {VALIDATION} (7 GB) into the manual directory, '
    f'from {PAGE}, after agreeing to its terms.'
  )
  COUNTS = types.MappingProxyType({'train': 1_281_167, 'validation': 50_000})
  DIGESTS = types.MappingProxyType(
    {
      TRAIN: '1d675b47d978889d74fa0da5fadfb00e',
      VALIDATION: '29b22e2961454d5413ddabcf34fc5622',
    }
  )

  @staticmethod
  def validation_labels() -> list[str]:
    """Classes of the validation images, in the order of their names."""
    return tfds.core.tfds_path(_LABELS).read_text().split()

  def _splits(self, manual_dir):
    train, validation = archives.find(manual_dir, TRAIN, VALIDATION)
    return {
      'train': self._generate_examples(train),
      'validation': self._validation(validation),
    }

  def _generate_examples(self, path):
    count = 0
    classes = set(self.info.features['label'].names)
    for inner, pack in archives.read(path):
      label = inner.rpartition('/')[2].removesuffix('.tar')
      if label in classes:
        for name, data in archives.read_inner(pack, path):
          count += 1
          yield archives.example(name.rpartition('/')[2], label, data)
    archives.check('training images', count, self.COUNTS['train'], path)

  def _validation(self, path):
    labels = self.validation_labels()
    count = 0
    for member, data in archives.read(path):
      # ILSVRC2012_val_00000001.JPEG is the first.
      name = member.rpartition('/')[2]
      number = name.removesuffix('.JPEG').rpartition('_')[2]
      if number.isdecimal() and 0 < int(number) <= len(labels):
        count += 1
        yield archives.example(name, labels[int(number) - 1], data)
    needed = self.COUNTS['validation']
    archives.check('validation images', count, needed, path)
