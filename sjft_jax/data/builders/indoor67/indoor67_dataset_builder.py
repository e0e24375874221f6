"""MIT Indoor 67 as a TFDS builder."""

import types

import tensorflow_datasets as tfds

from sjft_jax.data.builders import archives

ARCHIVE = 'indoorCVPR_09.tar'
PAGE = 'https://web.mit.edu/torralba/www/indoor.html'
LISTS = {'train': 'TrainImages.txt', 'test': 'TestImages.txt'}
NAMES = (
  'airport_inside', 'artstudio', 'auditorium', 'bakery', 'bar', 'bathroom',
  'bedroom', 'bookstore', 'bowling', 'buffet', 'casino', 'children_room',
  'church_inside', 'classroom', 'cloister', 'closet', 'clothingstore',
  'computerroom', 'concert_hall', 'corridor', 'deli', 'dentaloffice',
  'dining_room', 'elevator', 'fastfood_restaurant', 'florist', 'gameroom',
  'garage', 'greenhouse', 'grocerystore', 'gym', 'hairsalon', 'hospitalroom',
  'inside_bus', 'inside_subway', 'jewelleryshop', 'kindergarden', 'kitchen',
  'laboratorywet', 'laundromat', 'library', 'livingroom', 'lobby',
  'locker_room', 'mall', 'meeting_room', 'movietheater', 'museum', 'nursery',
  'office', 'operating_room', 'pantry', 'poolinside', 'prisoncell',
  'restaurant', 'restaurant_kitchen', 'shoeshop', 'stairscase',
  'studiomusic', 'subway', 'toystore', 'trainstation', 'tv_studio',
  'videostore', 'waitingroom', 'warehouse', 'winecellar',
)  # fmt: skip


class Builder(archives.Builder):
  """MIT Indoor 67 by its lists: about 80 train and 20 test images a class."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {ARCHIVE} (2.6 GB), {LISTS["train"]} and {LISTS["test"]} into the '
    f'manual directory, from {PAGE}.'
  )
  COUNTS = types.MappingProxyType({'train': 5360, 'test': 1340})

  def _info(self):
    return archives.info(
      self,
      tfds.features.ClassLabel(names=NAMES),
      homepage=PAGE,
      citation='Quattoni, Torralba: Recognizing indoor scenes. CVPR 2009.',
    )

  def _splits(self, manual_dir):
    archive, *lists = archives.find(manual_dir, ARCHIVE, *LISTS.values())
    wanted = {}
    for split, path in zip(LISTS, lists, strict=True):
      text = archives.read_whole(path).decode('utf-8', 'replace')
      # A name may hold a space: mall/shopping mall.jpg does.
      wanted[split] = {line.strip() for line in text.splitlines()} - {''}
      archives.check('names', len(wanted[split]), self.COUNTS[split], path)
    return {
      split: self._generate_examples(archive, names)
      for split, names in wanted.items()
    }

  def _generate_examples(self, archive, wanted):
    for name, data in archives.read(archive):
      name = '/'.join(name.split('/')[-2:])
      if name in wanted:
        wanted.remove(name)
        yield archives.example(name, name.partition('/')[0], data)
    archives.check_all_seen(wanted, archive)
