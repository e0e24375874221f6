"""How fast images are made, against other loaders, and whether training waits.

  python -m benchmarks.pipeline [--images=DIR] [--count=400]
  python -m benchmarks.pipeline --train --source=DIR --target=DIR [--steps=60]

The first prints images per second, and per second of processor time: decoded,
resized to 256 x 256, cropped to 224 x 224 at the centre. Without --images, JPEG
files of --width x --height pixels are made of scikit-image's photographs. The
peers are Pillow, with and without its draft mode, and torch's DataLoader around
Pillow where torch is installed (it is no part of any extra). `reduced` is the
decoding of JPEG at a part of its size that the leakage guard uses; the largest
and the mean difference of its crops is printed.

The second trains the small network of configs/folders.py for some updates, and
prints the share of the time that the loop is blocked on the next batch, and how
much faster the same updates are with batches that lie in memory.
"""

import argparse
import contextlib
import io
import itertools
import os
import pathlib
import tempfile
import time

import cv2
import numpy as np
from PIL import Image

from configs import folders
from sjft_jax import learn, mesh
from sjft_jax.data import datasets, packaged, pipelines, preprocess

RESIZE, CROP, BATCH = 256, 224, 50


def made(count, width, height):
  """JPEG files from the photographs of scikit-image."""
  images = packaged.load('photographs')
  rng, files = np.random.default_rng(0), []
  for _ in range(count):
    tiles = [
      preprocess.decode(images.files[i])
      for i in rng.choice(len(images.files), 12)
    ]
    rows = [np.concatenate(tiles[i : i + 4], axis=1) for i in (0, 4, 8)]
    image = cv2.resize(np.concatenate(rows), (width, height))
    files.append(cv2.imencode('.jpg', image)[1].tobytes())
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
  return datasets.Dataset(
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


def rate(work, count, repeats=5):
  """Images per second, and per second of processor time; the best of some."""
  rates = []
  for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    if work() is None:
      return None
    stop = time.perf_counter(), time.process_time()
    rates.append([count / (b - a) for a, b in zip(start, stop, strict=True)])
  return np.max(rates, axis=0)


def decoding(args):
  """Prints the table of loaders."""
  if args.images:
    pool = datasets.open_pool({'main': {'dir': args.images}})
    index = np.linspace(0, len(pool) - 1, args.count).astype(int)
    files = [pool.read(i) for i in index]
  else:
    files = made(args.count, args.width, args.height)
  count, cores = len(files), os.cpu_count()
  kilobytes = sum(map(len, files)) / count / 1000
  shape = preprocess.decode(files[0]).shape
  print(
    f'{count} images, the first {shape[1]} x {shape[0]}, {kilobytes:.0f} kB '
    f'each; OpenCV {cv2.__version__}; {cores} cores'
  )
  rows = (
    ('Pillow', lambda: [pillow(f) for f in files]),
    ('Pillow in draft mode', lambda: [pillow_draft(f) for f in files]),
    ('torch DataLoader with Pillow', lambda: torch_loader(files)),
    ('ours', lambda: [ours(f) for f in files]),
    ('ours reduced', lambda: [reduced(f) for f in files]),
    ('our sweep in batches, 1 thread', lambda: swept(files, 1)),
    (f'our sweep in batches, {cores} threads', lambda: swept(files, cores)),
  )
  print(f'{"":36}images/s  per processor s  x Pillow')
  peer = None
  for name, work in rows:
    found = rate(work, count)
    if found is None:
      print(f'{name:36}torch is not installed')
      continue
    peer = found[1] if peer is None else peer
    print(f'{name:36}{found[0]:8.0f}{found[1]:17.0f}{found[1] / peer:10.2f}')
  off = [
    np.abs(ours(f).astype(int) - reduced(f).astype(int)) for f in files[:100]
  ]
  print(
    f'reduced against whole: {np.mean([o.mean() for o in off]):.2f} grey '
    f'levels in the mean, {max(o.max() for o in off)} at most'
  )


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

  seconds = {}
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
      weights = learner.start(pool, workdir / 'pretrain')
      with contextlib.redirect_stderr(io.StringIO()):
        learner.fine_tune(weights, train, pool, drawn, 0, workdir / '0')
    # From the third batch on: the first fills the threads' buffers.
    spent = waits[-1][1] - waits[2][0]
    blocked = sum(stop - begin for begin, stop in waits[3:])
    seconds[name] = spent
    print(
      f'{name}: {args.steps - 2} updates in {spent:.2f} s, blocked on the next '
      f'batch {blocked:.2f} s ({100 * blocked / spent:.1f} %)'
    )
  made_, memory = seconds['batches made'], seconds['batches in memory']
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
  parser.add_argument('--train', action='store_true')
  parser.add_argument('--source')
  parser.add_argument('--target')
  parser.add_argument('--steps', type=int, default=60)
  args = parser.parse_args()
  (training if args.train else decoding)(args)


if __name__ == '__main__':
  main()
