"""Stanford Dogs as TFDS has it, read without TensorFlow."""

import types
import xml.etree.ElementTree as ET

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

IMAGES, LISTS, BOXES = 'images.tar', 'lists.tar', 'annotation.tar'
PAGE = 'http://vision.stanford.edu/aditya86/ImageNetDogs/'

_TFDS = tfds.builder_cls('stanford_dogs')


class Builder(archives.Builder, _TFDS, skip_registration=True):
  """Stanford Dogs by its lists: 100 training images of each of 120 breeds."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {IMAGES} (794 MB), {LISTS} and {BOXES} (22 MB) into the manual '
    f'directory, from {PAGE}.'
  )
  COUNTS = types.MappingProxyType({'train': 12_000, 'test': 8_580})
  DIGESTS = archives.published(_TFDS)

  def _splits(self, manual_dir):
    images, lists, boxes = archives.find(manual_dir, IMAGES, LISTS, BOXES)
    wanted = {}
    for name, data in archives.read(lists):
      split = name.rpartition('/')[2].removesuffix('_list.mat')
      if split in self.COUNTS:
        rows = archives.read_mat(data, lists, 'file_list')
        wanted[split] = {str(name) for name in rows['file_list'].tolist()}
    for split, count in self.COUNTS.items():
      archives.check(
        f'{split} images', len(wanted.get(split, ())), count, lists
      )
    classes = {_breed(name) for name in wanted['train']}
    archives.check('classes', len(classes), 120, lists)
    breeds = (_breed(name) for name in wanted['test'])
    archives.check_known('classes', breeds, classes, lists)
    self.info.features['label'].names = sorted(classes)
    boxes_of = {
      name.rpartition('/')[2]: _boxes(data, boxes)
      for name, data in archives.read(boxes)
    }
    return {
      split: self._generate_examples(images, names, boxes, boxes_of)
      for split, names in wanted.items()
    }

  def _generate_examples(self, archive, wanted, annotations, boxes_of):
    for path, data in archives.read(archive):
      name = '/'.join(path.split('/')[-2:])
      if name not in wanted:
        continue
      wanted.remove(name)
      stem = name.rpartition('/')[2].removesuffix('.jpg')
      if stem not in boxes_of:
        archives.check_all_seen({stem}, annotations)
      yield (
        path,
        {
          'image': data,
          'image/filename': path,
          'label': _breed(name),
          'objects': [{'bbox': box} for box in boxes_of[stem]],
        },
      )
    archives.check_all_seen(wanted, archive)


def _breed(name):
  return name.partition('/')[0].lower()


def _boxes(data, path):
  """Bounding boxes of an annotation, as parts of height and width."""
  try:
    root = ET.fromstring(data)
    size = [float(root.findtext(f'size/{k}')) for k in ('height', 'width')]
    corners = ('ymin', 'xmin', 'ymax', 'xmax')
    return [
      tfds.features.BBox(
        *(
          min(float(box.findtext(k)) / size[i % 2], 1.0)
          for i, k in enumerate(corners)
        )
      )
      for box in root.iterfind('object/bndbox')
    ]
  except (ET.ParseError, TypeError, ValueError, ZeroDivisionError) as e:
    raise archives.damaged(path, e) from e
