"""How fast images are made, against other loaders, and whether training waits.

  python -m benchmarks.pipeline [--images=DIR] [--count=400]
  python -m benchmarks.pipeline --train --source=DIR --target=DIR [--steps=60]

The first prints images per second, and per second of processor time: decoded,
resized to 256 x 256, cropped to 224 x 224 at the centre. Without --images, JPEG
files of --width x --height pixels and each --quality are made of scikit-image's
colour photographs (4:2:0, or 4:4:4 with --full_chroma). The peers are Pillow,
with and without its draft mode, and torch's DataLoader around Pillow where
torch is installed (the extra `benchmark`). All take turns, and the best of
some is printed. `reduced` is the decoding of JPEG at a part of its size that
the leakage guard uses; the largest and the mean difference of its crops is
printed. Then the parts: what each step of one image costs, ours and Pillow's;
an eighth of the size in grey is hardly more than the entropy decoding.

The second trains the small network of configs/folders.py for some updates, and
prints the share of the time that the loop is blocked on the next batch, and how
much faster the same updates are with batches that lie in memory.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import pathlib
import tempfile
import time

import cv2
import numpy as np
import PIL
import skimage
from PIL import Image

from configs import folders
from sjft_jax import learn, mesh
from sjft_jax.data import datasets, pipelines, preprocess
from sjft_jax.data.dataset import Dataset

RESIZE, CROP, BATCH = 256, 224, 50


COLOUR = (
  'astronaut.png',
  'chelsea.png',
  'coffee.png',
  'hubble_deep_field.jpg',
  'ihc.png',
  'motorcycle_left.png',
  'retina.jpg',
  'rocket.jpg',
)


def made(count, width, height, quality, full_chroma):
  """JPEG files of windows into scikit-image's colour photographs."""
  folder = pathlib.Path(skimage.__file__).parent / 'data'
  photographs = [preprocess.decode((folder / f).read_bytes()) for f in COLOUR]
  rng, files = np.random.default_rng(0), []
  for i in range(count):
    photograph = photographs[i % len(photographs)]
    rows, columns = photograph.shape[:2]
    scale = min(rows / height, columns / width) * rng.uniform(0.75, 1)
    sides = int(height * scale), int(width * scale)
    top, left = (
      rng.integers(room - side + 1)
      for room, side in zip((rows, columns), sides, strict=True)
    )
    window = photograph[top : top + sides[0], left : left + sides[1]]
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    window = cv2.resize(window, (width, height), interpolation=how)
    buffer = io.BytesIO()
    Image.fromarray(window).save(
      buffer, 'JPEG', quality=quality, subsampling=0 if full_chroma else 2
    )
    files.append(buffer.getvalue())
  return files


def ours(data):
  """As the sweeps do it."""
  image = preprocess.resize(preprocess.decode(data), RESIZE)
  return preprocess.center_crop(image, CROP)


def reduced(data):
  """From a JPEG decoded at a part of its size, if that is enough."""
  image = preprocess.resize(preprocess.decode(data, least=RESIZE), RESIZE)
  return preprocess.center_crop(image, CROP)


def pillow(data, draft=False):
  """As torchvision does it with PIL images."""
  image = Image.open(io.BytesIO(data))
  if draft:
    image.draft('RGB', (RESIZE, RESIZE))
  image = image.convert('RGB').resize((RESIZE, RESIZE), Image.BILINEAR)
  edge = (RESIZE - CROP) // 2
  return np.asarray(image.crop((edge, edge, edge + CROP, edge + CROP)))


def pillow_draft(data):
  """With the JPEG decoded at a part of its size, if that is enough."""
  return pillow(data, draft=True)


def of_files(files):
  """Encoded images as a data set."""
  return Dataset(
    name='main',
    classes=('a',),
    ids=np.array([f'main:{i}' for i in range(len(files))]),
    labels=np.zeros(len(files), np.int32),
    sizes=np.array([len(file) for file in files]),
    read=files.__getitem__,
  )


def swept(files, threads):
  """Through the pipeline, in batches."""
  blocks = pipelines.sweep(
    of_files(files), resize=RESIZE, crop=CROP, batch=BATCH, threads=threads
  )
  return sum(len(block.image) for block in blocks)


def torch_loader(files):
  """torch's DataLoader around Pillow, in process; None without torch."""
  try:
    import torch
  except ModuleNotFoundError:
    return None
  torch.set_num_threads(1)

  class Files(torch.utils.data.Dataset):
    def __len__(self):
      return len(files)

    def __getitem__(self, i):
      return torch.from_numpy(pillow(files[i]).copy())

  loader = torch.utils.data.DataLoader(Files(), BATCH)
  return sum(len(batch) for batch in loader)


def over(function, items):
  """Calls it for each and keeps nothing; how many there were."""
  return sum(function(item) is not None for item in items)


def seconds(rows, repeats=5):
  """Clock and processor seconds of each work, the best of some, in turn."""
  best = {name: np.full(2, np.inf) for name in rows}
  for _ in range(repeats):
    for name, work in rows.items():
      start = time.perf_counter(), time.process_time()
      if work() is None:
        best[name][:] = np.nan
      stop = time.perf_counter(), time.process_time()
      best[name] = np.minimum(best[name], np.subtract(stop, start))
  return best


def decoding(args):
  """Prints the tables of every quality, or of the given images."""
  if args.images:
    pool = datasets.open_pool({'main': {'dir': args.images}})
    index = np.linspace(0, len(pool) - 1, args.count).astype(int)
    tables(args.images, [pool.read(i) for i in index])
    return
  for quality in args.quality:
    files = made(args.count, args.width, args.height, quality, args.full_chroma)
    tables(f'quality {quality}', files)


def tables(title, files):
  """Prints what the loaders reach, and what the parts cost."""
  count, cores = len(files), os.cpu_count()
  kilobytes = sum(map(len, files)) / count / 1000
  shape = preprocess.decode(files[0]).shape
  print(
    f'{title}: {count} images, the first {shape[1]} x {shape[0]}, '
    f'{kilobytes:.0f} kB each; OpenCV {cv2.__version__}, Pillow '
    f'{PIL.__version__}; {cores} cores'
  )
  rows = {
    'Pillow': lambda: over(pillow, files),
    'Pillow in draft mode': lambda: over(pillow_draft, files),
    'torch DataLoader with Pillow': lambda: torch_loader(files),
    'ours': lambda: over(ours, files),
    'ours reduced': lambda: over(reduced, files),
    'our sweep in batches, 1 thread': lambda: swept(files, 1),
    f'our sweep in batches, {cores} threads': lambda: swept(files, cores),
  }
  print(f'{"":36}images/s  per processor s  x Pillow')
  found = seconds(rows)
  for name, (clock, processor) in found.items():
    if np.isnan(clock):
      print(f'{name:36}torch is not installed')
      continue
    times = found['Pillow'][1] / processor
    print(
      f'{name:36}{count / clock:8.0f}{count / processor:17.0f}{times:10.2f}'
    )
  off = [
    np.abs(ours(f).astype(int) - reduced(f).astype(int)) for f in files[:100]
  ]
  print(
    f'reduced against whole: {np.mean([o.mean() for o in off]):.2f} grey '
    f'levels in the mean, {max(o.max() for o in off)} at most'
  )
  parts(files[:40])


def parts(files):
  """Prints the processor time of every step, on whole images in memory."""
  images = [preprocess.decode(f) for f in files]
  peers = [Image.fromarray(image) for image in images]
  rows = {
    'ours, decode': (preprocess.decode, files),
    '  in grey': (preprocess.decode_grey, files),
    '  in grey, an eighth of the size': (
      lambda f: preprocess.decode_grey(f, least=1),
      files,
    ),
    'ours, resize': (lambda x: preprocess.resize(x, RESIZE), images),
    '  in one step (INTER_AREA)': (
      lambda x: cv2.resize(x, (RESIZE, RESIZE), interpolation=cv2.INTER_AREA),
      images,
    ),
    'Pillow, decode': (
      lambda f: Image.open(io.BytesIO(f)).convert('RGB'),
      files,
    ),
    'Pillow, resize': (
      lambda x: x.resize((RESIZE, RESIZE), Image.BILINEAR),
      peers,
    ),
  }
  found = seconds({k: functools.partial(over, *v) for k, v in rows.items()})
  for name, (_, processor) in found.items():
    print(f'{name:36}{1000 * processor / len(files):8.3f} ms')


def training(args):
  """Prints the share of the time that training waits for batches."""
  c = folders.get_config()
  c.target.train = c.target.test = args.target
  c.source.main.dir = args.source
  c.pretrain.steps = 0
  c.train.steps = args.steps
  train, _ = datasets.open_target(c.target, 0)
  pool = datasets.open_pool(c.source)
  rng = np.random.default_rng(0)
  depth = 100
  start = np.arange(len(train)) * depth
  drawn = pipelines.Candidates(
    index=rng.integers(len(pool), size=len(train) * depth).astype(np.int32),
    start=start,
    stop=start + depth,
  )
  joint, waits, kept = pipelines.joint, [], []

  def timed(*positional, **settings):
    batches = joint(*positional, **settings)
    while True:
      begin = time.perf_counter()
      batch = next(batches, None)
      waits.append((begin, time.perf_counter()))
      if batch is None:
        return
      if len(kept) < 8:
        kept.append(batch)
      yield batch

  def stored(*positional, steps, first_step, **settings):
    del positional, settings
    for batch in itertools.islice(itertools.cycle(kept), steps - first_step):
      waits.append((time.perf_counter(),) * 2)
      yield batch

  spent = {}
  for name, batches in (
    ('the first, which compiles', timed),
    ('batches made', timed),
    ('batches in memory', stored),
  ):
    waits.clear()
    pipelines.joint = batches
    with tempfile.TemporaryDirectory() as directory:
      workdir = pathlib.Path(directory)
      learner = learn.Learner(
        c, len(train.classes), len(pool.classes), mesh.make(), workdir
      )
      start = learner.start(pool, workdir / 'pretrain')
      with contextlib.redirect_stderr(io.StringIO()):
        learner.fine_tune(
          start, start, train, pool, drawn, None, 0, workdir / '0'
        )
    # From the third batch on: the first fills the threads' buffers.
    spent[name] = waits[-1][1] - waits[2][0]
    blocked = sum(stop - begin for begin, stop in waits[3:])
    print(
      f'{name}: {args.steps - 2} updates in {spent[name]:.2f} s, blocked on '
      f'the next batch {blocked:.2f} s ({100 * blocked / spent[name]:.1f} %)'
    )
  made_, memory = spent['batches made'], spent['batches in memory']
  print(
    'with batches in memory the same updates take '
    f'{100 * memory / made_:.1f} % of the time'
  )


def main():
  """Reads the arguments."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--images')
  parser.add_argument('--count', type=int, default=400)
  parser.add_argument('--width', type=int, default=500)
  parser.add_argument('--height', type=int, default=375)
  parser.add_argument('--quality', type=int, nargs='+', default=[75, 90, 95])
  parser.add_argument('--full_chroma', action='store_true')
  parser.add_argument('--train', action='store_true')
  parser.add_argument('--source')
  parser.add_argument('--target')
  parser.add_argument('--steps', type=int, default=60)
  args = parser.parse_args()
  (training if args.train else decoding)(args)


if __name__ == '__main__':
  main()
