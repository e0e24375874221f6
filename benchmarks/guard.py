"""What the leakage guard finds, what it takes wrongly, and how fast it is.

  python -m benchmarks.guard --source=DIR --target=DIR [--count=1000]
  python -m benchmarks.guard --mnist [--count=400]

Plants `count` images of the target folder among those of the source folder,
each changed in one of the ways of KINDS, and looks for repeats. HARDER ways are
planted in a run of their own: the guard does not promise them. Prints, for each
way, how many were planted and found, then what else was taken for a repeat,
and images a second with the hash table computed and with it stored. The
folders' own images are taken to be free of repeats.

With --mnist, `count` of the packaged MNIST digits are the target, and ten times
as many the source: pictures of few strokes, as they are (28 pixels) and
enlarged to 64, which by their nature are much alike.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import cv2
import numpy as np

from configs import default
from sjft_jax import repeats
from sjft_jax.data import dataset, datasets, packaged, preprocess


def jpeg(image, quality=90):
  """RGB as a JPEG file."""
  flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
  return cv2.imencode('.jpg', image[..., ::-1], flags)[1].tobytes()


def crop(image, rng, share=0.1):
  """A window that leaves out a share of each side, anywhere."""
  room = [round(share * side) for side in image.shape[:2]]
  top, left = (int(rng.integers(r + 1)) for r in room)
  height, width = (
    side - r for side, r in zip(image.shape[:2], room, strict=True)
  )
  return image[top : top + height, left : left + width]


def small(image):
  """64 x 64 pixels."""
  return cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)


def border(image, rng):
  """A black, grey or white border of 2 to 12 %, of its own on each side."""
  height, width = image.shape[:2]
  widths = [
    int(rng.integers(max(1, 0.02 * n), 0.12 * n + 1))
    for n in (height, height, width, width)
  ]
  level = int(rng.choice([0, 128, 255]))
  return cv2.copyMakeBorder(
    image, *widths, cv2.BORDER_CONSTANT, value=[level] * 3
  )


def turned(image, degrees):
  """Turned about its middle."""
  height, width = image.shape[:2]
  move = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
  return cv2.warpAffine(
    image, move, (width, height), borderMode=cv2.BORDER_REFLECT
  )


def together(image, rng):
  """Mirrored, cropped, 64 x 64 pixels, JPEG quality 50."""
  return jpeg(small(crop(image[:, ::-1], rng)), 50)


# name -> (encoded file, its pixels, random generator) -> encoded file
KINDS = {
  'copy': lambda data, image, rng: data,
  'mirrored': lambda data, image, rng: jpeg(image[:, ::-1]),
  'JPEG quality 50': lambda data, image, rng: jpeg(image, 50),
  '10 % cropped': lambda data, image, rng: jpeg(crop(image, rng)),
  '64 pixels': lambda data, image, rng: jpeg(small(image)),
  'border': lambda data, image, rng: jpeg(border(image, rng)),
}
HARDER = {
  'mirrored, cropped, 64 px, q 50': lambda data, image, rng: together(
    image, rng
  ),
  'grey': lambda data, image, rng: jpeg(
    cv2.cvtColor(cv2.cvtColor(image, 7), cv2.COLOR_GRAY2RGB)
  ),
  'brighter by half': lambda data, image, rng: jpeg(
    np.minimum(image * 1.5, 255).astype(np.uint8)
  ),
  '15 % cropped': lambda data, image, rng: jpeg(crop(image, rng, 0.15)),
  '20 % cropped': lambda data, image, rng: jpeg(crop(image, rng, 0.2)),
  'turned by 2 degrees': lambda data, image, rng: jpeg(turned(image, 2)),
  'turned by 5 degrees': lambda data, image, rng: jpeg(turned(image, 5)),
}


def plant(source, target, kinds, count, seed):
  """The source with `count` changed target images mixed in.

  Returns:
    (data set, {position: (target position, kind)}).
  """
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(target), min(count, len(target)), replace=False)
  total = len(source) + len(chosen)
  places = rng.choice(total, len(chosen), replace=False)
  names = [list(kinds)[n % len(kinds)] for n in range(len(chosen))]
  content, planted = {}, {}
  for at, t, kind in zip(places.tolist(), chosen.tolist(), names, strict=True):
    data = target.read(t)
    content[at] = kinds[kind](data, preprocess.decode(data), rng)
    planted[at] = t, kind
  place = np.full(total, -1)
  place[np.setdiff1d(np.arange(total), places)] = np.arange(len(source))
  ids = np.where(place < 0, [f'main:{i}' for i in range(total)], '')
  ids = np.where(place < 0, ids, source.ids[place])
  sizes = np.where(place < 0, 0, source.sizes[place])
  for at, data in content.items():
    sizes[at] = len(data)
  mixed = dataclasses.replace(
    source,
    ids=ids,
    labels=np.zeros(total, np.int32),
    sizes=sizes,
    source=np.zeros(total, np.int32),
    read=lambda i: content[i] if i in content else source.read(int(place[i])),
  )
  return mixed, planted


def digits(side, count, seed):
  """MNIST digits enlarged to `side` pixels: (source, target)."""
  files = packaged.load('mnist').files
  chosen = np.random.default_rng(seed).permutation(len(files))[: 11 * count]

  def png(data):
    image = preprocess.decode(data)
    if side != len(image):
      image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode('.png', image)[1].tobytes()

  def as_set(name, index):
    content = [png(files[i]) for i in index]
    return dataset.Dataset(
      name=name,
      classes=('digit',),
      ids=np.array([f'{name}:mnist-{i}' for i in index]),
      labels=np.zeros(len(index), np.int32),
      sizes=np.array([len(data) for data in content]),
      read=content.__getitem__,
    )

  return as_set('main', chosen[count:]), as_set('target', chosen[:count])


def look(source, target_set, kinds, args, cache):
  """Plants, looks, prints a table."""
  mixed, planted = plant(source, target_set, kinds, args.count, args.seed)
  c = default.get_config().guard
  start = time.monotonic()
  target = repeats.Target(target_set, 0, 'hash target')
  print(f'target hashed: {len(target_set) / (time.monotonic() - start):.0f} '
        'images/s')  # fmt: skip
  for state in ('computed', 'stored'):
    start = time.monotonic()
    found, counts = repeats.find(
      mixed,
      0,
      len(mixed),
      target,
      screen=c.screen,
      confirm=c.confirm,
      cache=cache,
      threads=0,
    )
    seconds = time.monotonic() - start
    print(
      f'hash table {state}: {seconds:.1f} s, {len(mixed) / seconds:.0f} '
      'source images/s'
    )
  print(counts)
  pairs = {(r.source, t) for r in found for t in r.targets}
  print(f'{"":32}planted  found  recall, %')
  for kind in kinds:
    of_kind = [(s, t) for s, (t, k) in planted.items() if k == kind]
    hits = sum(pair in pairs for pair in of_kind)
    share = 100 * hits / len(of_kind)
    print(f'{kind:32}{len(of_kind):7}{hits:7}{share:11.2f}')
  hits = sum((s, t) in pairs for s, (t, _) in planted.items())
  share = 100 * hits / len(planted)
  print(f'{"all":32}{len(planted):7}{hits:7}{share:11.2f}')
  wrong = sorted({r.source for r in found} - set(planted))
  print(
    f'taken wrongly: {len(wrong)} of {len(source)} source images '
    f'({100 * len(wrong) / len(source):.3f} %)'
  )
  for r in [r for r in found if r.source in wrong][:20]:
    print(
      f'  {mixed.ids[r.source]} for {target_set.ids[r.targets[0]]}: {r.tests}, '
      f'{r.similarity}'
    )
  values = [r.similarity for r in found if r.similarity is not None]
  print(f'lowest similarity of a repeat found: {min(values):.3f}\n')


def main():
  """Reads the arguments and looks twice."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--source')
  parser.add_argument('--target')
  parser.add_argument('--mnist', action='store_true')
  parser.add_argument('--count', type=int)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  if args.mnist:
    args.count = args.count or 400
    for side in (28, 64):
      print(f'MNIST, {side} pixels')
      source, target = digits(side, args.count, args.seed)
      with tempfile.TemporaryDirectory() as cache:
        look(source, target, KINDS, args, pathlib.Path(cache))
    return
  if not (args.source and args.target):
    parser.error('--source and --target, or --mnist')
  args.count = args.count or 1000
  source = datasets.open_pool({'main': {'dir': args.source}})
  spec = {'train': args.target, 'test': args.target}
  _, target = datasets.open_target(spec, args.seed)
  for kinds in (KINDS, HARDER):
    with tempfile.TemporaryDirectory() as cache:
      look(source, target, kinds, args, pathlib.Path(cache))


if __name__ == '__main__':
  main()
