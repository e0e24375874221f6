"""The search against its peers: speed, recall, memory, growth.

  python -m benchmarks.search --out=DIR \
      [--target=DIR --source=DIR [--weights=FILE]] \
      [--dims=1536,35200] [--images=35000] [--targets=1434] \
      [--k=1,10,300,5000]

Descriptors: synthetic ones, or with --target and --source those of real images
(Gabor; for 35,200 dims SqueezeNet's conv1 and fire4, which needs --weights).
Every row is measured in a process of its own, which multiplies two float32
matrices with NumPy before and after: `product` is the rate of pairs x dims / s
that two such products would have at that moment, and `share` what the row
reaches of it, by the clock and by processor time (on a machine that others use
too, the latter tells more). Slow peers get fewer images; a peer that is not
installed has no row: pip install torch faiss-cpu scikit-learn. `recall` is the
share of the k neighbours, found by float64 over all pairs for some of the
targets. GiB is what the process allocated at its peak while it searched, beyond
what it held before, the descriptors among it. Rows of this project are measured
with half and a quarter of the images, too: time should halve, memory stay.
"""

import argparse
import gc
import importlib.util
import json
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np

from benchmarks.search_peers import ROWS, Data

CHECKED = 16


def synthetic(dims, targets, images):
  """Counts that vary in a few common directions, as those of images do."""
  channels, bins, pixels = {1536: (48, 32, 4096), 35200: (352, 100, 729)}[dims]
  rng = np.random.default_rng(0)
  directions = rng.standard_normal((24, channels, bins)).astype(np.float32)

  def draw(n):
    counts = np.empty((n, dims), np.uint16)
    for start in range(0, n, 256):
      m = min(256, n - start)
      latent = rng.standard_normal((m, 24)).astype(np.float32) * 0.35
      logit = np.einsum('nl,lcb->ncb', latent, directions)
      mass = np.exp(logit)
      mass /= mass.sum(axis=-1, keepdims=True)
      drawn = rng.multinomial(pixels, mass.astype(np.float64) * (1 - 1e-6))
      counts[start : start + m] = drawn.reshape(m, dims)
    return counts

  return (
    draw(targets),
    draw(images),
    np.full(dims, float(pixels)),
    np.full(dims, 1 / channels),
  )


def real(args, dims):
  """Counts of real images: Gabor at 64 pixels, or SqueezeNet's at 96."""
  from configs import folders
  from sjft_jax import mesh, retrieval
  from sjft_jax.data import datasets

  c = folders.get_config()
  c.target.train = c.target.test = args.target
  c.source.main.dir = args.source
  if dims == 35200:
    c.describe.bank, c.describe.weights = 'conv', args.weights
    c.describe.layers, c.describe.bins = ('conv1', 'fire4'), 100
    c.describe.resize = c.describe.crop = 96
  target, _ = datasets.open_target(c.target, 0)
  source = datasets.open_pool(c.source)
  # Classes lie one after the other: a draw, in random order.
  order = np.random.default_rng(0).permutation(len(source))
  source = source.subset(order[: args.images])
  target = target.subset(np.arange(min(len(target), args.targets)))
  where = pathlib.Path(args.out) / f'edges-{dims}'
  describer = retrieval.open_describer(c, where, mesh.make(), fit_on=target)
  counts = [
    np.concatenate(
      [b.counts_nd.astype(np.uint16) for b in describer.blocks(x, rows=1024)]
    )
    for x in (target, source)
  ]
  return *counts, describer.pixels_d, describer.weight_d


def product_rate(targets, dims, seconds=1.0):
  """Pairs x dims per second of two float32 products: (clock, processor)."""
  rng = np.random.default_rng(0)
  a = rng.standard_normal((1024, dims), np.float32)
  b = rng.standard_normal((targets, dims), np.float32)
  a @ b.T
  clock, processor, many = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - clock < seconds:
    a @ b.T
    many += 1
  pairs = many * 1024 * targets * dims / 2
  return np.array(
    [
      pairs / (time.perf_counter() - clock),
      pairs / (time.process_time() - processor),
    ]
  )


class Allocated:
  """Samples how much more the process allocates than it held before, GiB."""

  def __enter__(self):
    self.gib, self._before = 0.0, self._now()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._sample)
    self._thread.start()
    return self

  def __exit__(self, *error):
    self._stop.set()
    self._thread.join()

  def _sample(self):
    while not self._stop.wait(0.02):
      self.gib = max(self.gib, self._now() - self._before)

  @staticmethod
  def _now():
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
      if line.startswith('RssAnon:'):
        return int(line.split()[1]) / 2**20
    raise RuntimeError('/proc/self/status has no RssAnon: this needs Linux.')


def one(name, path, images, k):
  """Measures one row; prints it as JSON."""
  make, settings, _, most_targets, most_images = ROWS[name]
  data = Data(path, min(images, most_images or images))
  data.target = data.target[:most_targets]
  targets, dims = data.target.shape
  before = product_rate(targets if most_targets is None else 1024, dims)
  work = make(data, min(k, len(data.source) - 1), **settings)
  gc.collect()
  with Allocated() as allocated:
    clock, processor = time.perf_counter(), time.process_time()
    index, note = work()
    clock = time.perf_counter() - clock
    processor = time.process_time() - processor
  after = product_rate(targets if most_targets is None else 1024, dims)
  rate = targets * len(data.source) * dims / np.array([clock, processor])
  product = (before + after) / 2
  print(
    json.dumps(
      {
        'name': name,
        'images': len(data.source),
        'seconds': clock,
        'rate': rate[0],
        'product': product[0],
        'share': list(rate / product),
        'grown': allocated.gib,
        'recall': None if index is None else recall(data, index, k),
        'note': note,
      }
    )
  )


def recall(data, index, k):
  """Share of the k nearest by float64 over all pairs, for some targets."""
  rows = np.linspace(0, len(data.target) - 1, CHECKED).astype(int)
  w = data.weight_d / 2
  p, log_p = data.lifted(data.target[rows], np.float64)
  parts = []
  for start in range(0, len(data.source), 64):
    q, log_q = data.lifted(data.source[start : start + 64], np.float64)
    parts.append(
      np.stack(
        [((t - q) * (u - log_q)) @ w for t, u in zip(p, log_p, strict=True)]
      )
    )
  distance = np.concatenate(parts, axis=1)
  last = np.sort(distance, axis=1)[:, k - 1 : k]
  mine = np.take_along_axis(distance, index[rows], axis=1)
  # Equals of the last one may stand for it.
  return float((mine <= last + 1e-9).mean())


def measure(name, path, images, k):
  """A row's values, from a process of its own; None if it failed."""
  done = subprocess.run(
    [
      sys.executable, '-m', 'benchmarks.search', '--one', name,
      '--out', str(path), '--images', str(images), '--k', str(k),
    ],
    capture_output=True,
    text=True,
  )  # fmt: skip
  if done.returncode:
    print(f'{name}: failed: {done.stderr.strip().splitlines()[-1]}')
    return None
  return json.loads(done.stdout.splitlines()[-1])


def show(row):
  """One line of the table."""
  recalled = '-' if row['recall'] is None else f'{row["recall"]:.4f}'
  clock, processor = row['share']
  print(
    f'{row["name"]:30}{row["images"]:8}{row["seconds"]:9.2f}'
    f'{row["rate"] / 1e9:9.2f}{row["product"] / 1e9:9.1f}'
    f'{clock:8.0%}{processor:8.0%}{recalled:>8}{row["grown"]:9.2f}'
    f'  {row["note"]}',
    flush=True,
  )


def table(title, path, k, args):
  """All rows for one set of descriptors, and growth with the source."""
  print(
    f'\n{title}, {k} neighbours\n{"":30}{"images":>8}{"seconds":>9}'
    f'{"Gpd/s":>9}{"product":>9}{"share":>8}{"by cpu":>8}{"recall":>8}'
    f'{"GiB":>9}'
  )
  rows = {}
  for name, (_, _, module, *_) in ROWS.items():
    if args.rows and not any(part in name for part in args.rows.split(',')):
      continue
    if importlib.util.find_spec(module):
      rows[name] = measure(name, path, args.images, k)
      if rows[name]:
        show(rows[name])
  print('as the source doubles:')
  for name in rows:
    if name.startswith('sjft_jax'):
      for images in (args.images // 4, args.images // 2):
        row = measure(name, path, images, k)
        if row:
          show(row)


def main():
  """Prepares descriptors, measures every row, prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', required=True)
  parser.add_argument('--target')
  parser.add_argument('--source')
  parser.add_argument('--weights')
  parser.add_argument('--dims', default='1536,35200')
  parser.add_argument('--images', type=int, default=35000)
  parser.add_argument('--targets', type=int, default=1434)
  parser.add_argument('--k', default='300')
  parser.add_argument('--rows', help='only rows with one of these in the name')
  parser.add_argument('--one', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    one(args.one, args.out, args.images, int(args.k))
    return
  for dims in map(int, args.dims.split(',')):
    kind = 'real' if args.target and args.source else 'synthetic'
    if kind == 'real' and dims != 1536 and not args.weights:
      parser.error(f'--dims={dims} of real images needs --weights')
    path = pathlib.Path(args.out) / f'{kind}-{dims}'
    if not (path / 'bins.npz').exists():
      path.mkdir(parents=True, exist_ok=True)
      made = (
        real(args, dims)
        if kind == 'real'
        else synthetic(dims, args.targets, args.images)
      )
      np.save(path / 'target.npy', made[0])
      np.save(path / 'source.npy', made[1])
      np.savez(path / 'bins.npz', pixels=made[2], weight=made[3])
    targets = len(np.load(path / 'target.npy', mmap_mode='r'))
    for k in map(int, args.k.split(',')):
      table(f'{kind}, {dims} dims, {targets} targets', path, k, args)


if __name__ == '__main__':
  main()
