"""The search against its peers: speed, recall, memory, growth.

  python -m benchmarks.search --out=DIR \
      [--target=DIR --source=DIR [--weights=FILE]] \
      [--dims=1536,35200] [--images=35000] [--targets=1434] [--k=300]

Descriptors: synthetic ones, and with --target and --source those of real
images (Gabor, and with --weights SqueezeNet's conv1 and fire4). Every row is
measured in a process of its own, which multiplies two float32 matrices with
NumPy before and after: `product` is the rate of pairs x dims / s that two
such products would have at that moment, and `share` what the row reaches of
it, by the clock and by processor time (on a machine that others use too, the
latter tells more). Slow peers get fewer images; a peer that is not installed
has no row: pip install torch faiss-cpu scikit-learn. `recall` is the share of
the k neighbours, found by float64 over all pairs for some of the targets.
`memory` is what the process needed at its peak beyond the loaded descriptors.
"""

import argparse
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

EPSILON = 2.2204e-16
CHECKED = 16


# --- Descriptors --------------------------------------------------------------


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


# --- What is measured: (descriptors, k) -> (source positions [q, k], images) --


class Data:
  """Counts in files, mapped into memory."""

  def __init__(self, path, images):
    path = pathlib.Path(path)
    self.target = np.load(path / 'target.npy')
    self.source = np.load(path / 'source.npy', mmap_mode='r')[:images]
    with np.load(path / 'bins.npz') as stored:
      self.pixels_d, self.weight_d = stored['pixels'], stored['weight']

  def lifted(self, counts, dtype=np.float32):
    """(p, log(p + e)) of counts."""
    p = counts.astype(dtype) / self.pixels_d.astype(dtype)
    return p, np.log(p + dtype(EPSILON))


def ours(data, k, rank, operands):
  """This project's search."""
  from sjft_jax import describe, mesh, search

  class Describer:
    pixels_d, weight_d = data.pixels_d, data.weight_d
    fractions = describe.Describer.fractions
    logs = describe.Describer.logs
    log_error = describe.Describer.log_error

  class Stream:
    def __init__(self, counts):
      self.counts, self.describer = counts, Describer()

    def __len__(self):
      return len(self.counts)

    def blocks(self, start, stop, rows):
      for at in range(start, stop, rows):
        part = self.counts[at : min(at + rows, stop)]
        yield describe.Block(
          index_n=np.arange(at, at + len(part)),
          counts_nd=part,
          stop=at + len(part),
          bad=[],
        )

  def find(counts):
    return search.nearest(
      Stream(data.target),
      Stream(counts),
      k=k,
      mesh=mesh.make(),
      rank=rank,
      operands=operands,
    )

  find(data.source[: k + 2048])  # compiles

  def work():
    found = find(data.source)
    evaluated = found.seen.evaluated_q.sum() / found.seen.good
    note = f'{found.screens[0][0]}, rank {found.screens[0][1]}; '
    note += f'{evaluated / len(data.target):.2%} of pairs in float64'
    return found.table.index_qk, note

  return work


def numpy_lift(data, k):
  """Lifted products in NumPy, argpartition of every block, one last merge."""
  a = (data.weight_d / 2).astype(np.float32)

  def work():
    p, log_p = data.lifted(data.target)
    self_q = (a * p * log_p).sum(axis=1)
    kept = []
    for start in range(0, len(data.source), 1024):
      q, log_q = data.lifted(data.source[start : start + 1024])
      distance = self_q[:, None] + (q * log_q) @ a
      distance -= (p * a) @ log_q.T + (log_p * a) @ q.T
      m = min(k, distance.shape[1])
      at = np.argpartition(distance, m - 1, axis=1)[:, :m]
      kept.append((np.take_along_axis(distance, at, axis=1), at + start))
    distance, index = (
      np.concatenate(x, axis=1) for x in zip(*kept, strict=True)
    )
    at = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, at, axis=1), ''

  return work


def torch_lift(data, k, dtype='float32'):
  """Lifted products and topk of every block in torch."""
  import torch

  dtype = getattr(torch, dtype)
  a = torch.from_numpy((data.weight_d / 2).astype(np.float32))

  def lift(counts):
    p = torch.from_numpy(counts.astype(np.float32))
    p /= torch.from_numpy(data.pixels_d.astype(np.float32))
    return p, torch.log(p + EPSILON)

  def work():
    p, log_p = lift(data.target)
    self_q = (a * p * log_p).sum(dim=1)
    p, log_p = (p * a).to(dtype), (log_p * a).to(dtype)
    kept = []
    for start in range(0, len(data.source), 4096):
      q, log_q = lift(data.source[start : start + 4096])
      self_s = (q * log_q) @ a
      cross = p @ log_q.to(dtype).T + log_p @ q.to(dtype).T
      distance = self_q[:, None] + self_s[None] - cross.float()
      found = torch.topk(distance, min(k, len(q)), dim=1, largest=False)
      kept.append((found.values, found.indices + start))
    distance, index = (torch.cat(x, dim=1) for x in zip(*kept, strict=True))
    at = torch.topk(distance, k, dim=1, largest=False).indices
    return torch.gather(index, 1, at).numpy(), ''

  return work


def faiss_flat(data, k):
  """IndexFlatIP over lifted vectors; blocks merged, as they would not fit."""
  import faiss

  a = (data.weight_d / 2).astype(np.float32)

  def work():
    p, log_p = data.lifted(data.target)
    query = np.concatenate([p * a, log_p * a, -np.ones((len(p), 1), 'f')], 1)
    kept = []
    step = 2**28 // data.source.shape[1]
    for start in range(0, len(data.source), step):
      q, log_q = data.lifted(data.source[start : start + step])
      self_s = (q * log_q) @ a
      index = faiss.IndexFlatIP(query.shape[1])
      index.add(np.concatenate([log_q, q, self_s[:, None]], 1))
      score, at = index.search(query, min(k, len(q)))
      kept.append((-score, at + start))
    distance, index = (
      np.concatenate(x, axis=1) for x in zip(*kept, strict=True)
    )
    at = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, at, axis=1), ''

  return work


def release(data, k):
  """The release's formula: every logarithm of every pair, float32."""
  del k
  e, w = np.float32(EPSILON), (data.weight_d / 2).astype(np.float32)

  def work():
    p, _ = data.lifted(data.target)
    q, _ = data.lifted(data.source)
    for t in p:
      ratio = np.log((t + e) / (q + e))
      ((t * ratio - q * ratio) * w).sum(axis=1)
    return None, ''

  return work


def scipy_entropy(data, k):
  """scipy.special.rel_entr, both ways."""
  del k
  from scipy.special import rel_entr

  w = data.weight_d / 2

  def work():
    p = data.target / data.pixels_d + EPSILON
    q = data.source / data.pixels_d + EPSILON
    for t in p:
      ((rel_entr(t, q) + rel_entr(q, t)) * w).sum(axis=1)
    return None, ''

  return work


def sklearn_metric(data, k):
  """scikit-learn's neighbours with a callable metric."""
  from sklearn.neighbors import NearestNeighbors

  w = data.weight_d / 2

  def metric(p, q):
    return np.dot(w * (p - q), np.log((p + EPSILON) / (q + EPSILON)))

  def work():
    found = NearestNeighbors(n_neighbors=k, algorithm='brute', metric=metric)
    found.fit(data.source / data.pixels_d)
    found.kneighbors(data.target / data.pixels_d)
    return None, ''

  return work


# name: (maker, settings, module that must be there, targets, images at most)
ROWS = {
  'sjft_jax': (ours, dict(rank=None, operands='auto'), 'jax', None, None),
  'sjft_jax, float32': (
    ours, dict(rank=None, operands='float32'), 'jax', None, None,
  ),
  'sjft_jax, float32, all bins': (
    ours, dict(rank=0, operands='float32'), 'jax', None, None,
  ),
  'sjft_jax, bfloat16, all bins': (
    ours, dict(rank=0, operands='bfloat16'), 'jax', None, None,
  ),
  'NumPy lift + argpartition': (numpy_lift, {}, 'numpy', None, None),
  'torch lift + topk': (torch_lift, {}, 'torch', None, None),
  'torch lift + topk, bfloat16': (
    torch_lift, dict(dtype='bfloat16'), 'torch', None, None,
  ),
  'faiss IndexFlatIP, lifted': (faiss_flat, {}, 'faiss', None, None),
  "release's formula, NumPy": (release, {}, 'numpy', 16, 1024),
  'scipy rel_entr': (scipy_entropy, {}, 'scipy', 8, 1024),
  'scikit-learn, callable metric': (
    sklearn_metric, {}, 'sklearn', 8, 1024,
  ),
}  # fmt: skip


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


def one(name, path, images, k):
  """Measures one row; prints it as JSON."""
  make, settings, _, most_targets, most_images = ROWS[name]
  data = Data(path, min(images, most_images or images))
  data.target = data.target[:most_targets]
  targets, dims = data.target.shape
  before = product_rate(targets if most_targets is None else 1024, dims)
  work = make(data, min(k, len(data.source) - 1), **settings)
  resting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  clock, processor = time.perf_counter(), time.process_time()
  index, note = work()
  clock = time.perf_counter() - clock
  processor = time.process_time() - processor
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
        'peak': peak / 2**20,
        'grown': (peak - resting) / 2**20,
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


def table(title, path, args):
  """All rows for one set of descriptors, and growth with the source."""
  print(
    f'\n{title}, {args.k} neighbours\n{"":30}{"images":>8}{"seconds":>9}'
    f'{"Gpd/s":>9}{"product":>9}{"share":>8}{"by cpu":>8}{"recall":>8}'
    f'{"GiB":>9}'
  )
  rows = {}
  for name, (_, _, module, *_) in ROWS.items():
    if args.rows and not any(part in name for part in args.rows.split(',')):
      continue
    if importlib.util.find_spec(module):
      rows[name] = measure(name, path, args.images, args.k)
      if rows[name]:
        show(rows[name])
  print('as the source doubles:')
  for images in (args.images // 4, args.images // 2):
    row = measure('sjft_jax', path, images, args.k)
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
  parser.add_argument('--k', type=int, default=300)
  parser.add_argument('--rows', help='only rows with one of these in the name')
  parser.add_argument('--one', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    one(args.one, args.out, args.images, args.k)
    return
  for dims in map(int, args.dims.split(',')):
    kinds = ['synthetic']
    if args.target and args.source and (dims == 1536 or args.weights):
      kinds.append('real')
    for kind in kinds:
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
      table(f'{kind}, {dims} dims, {targets} targets', path, args)


if __name__ == '__main__':
  main()
