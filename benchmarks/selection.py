"""How long a selection takes, how much memory, and whether it is exact.

  python -m benchmarks.selection --source=DIR --target=DIR \
      [--limit=10000] [--bank=conv --weights=FILE] --out=DIR

Runs the selection stage alone (64-pixel images by default), in OUT, which must
be new, then compares the neighbours of --check target images with a sort of
float64 distances that are computed here, by the formula as it is published,
over every source image.
Prints images, seconds, peak memory of the process before the check, and the
number of lists that differ. Ties (distances equal to 1e-9) may stand in
either order.
"""

import argparse
import pathlib
import resource
import time

import numpy as np

from configs import folders
from sjft_jax import describe, mesh, retrieval
from sjft_jax.data import datasets


def brute_force(target_qcb, source, pixels, weight):
  """All distances of some targets, float64 [q, s], by the plain formula.

  D = 1/2 sum w [p log((p + e) / (q + e)) + q log((q + e) / (p + e))].
  """
  e = 2.2204e-16
  p = target_qcb / pixels
  rows = []
  for counts in source:
    q = counts / pixels
    one = []
    for t in p:
      term = t * np.log((t + e) / (q + e)) + q * np.log((q + e) / (t + e))
      one.append(0.5 * (term * weight).sum(axis=1))
    rows.append(np.stack(one))
  return np.concatenate(rows, axis=1)


def main():
  """Selects, measures, checks."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--source', required=True)
  parser.add_argument('--target', required=True)
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--bank', default='gabor')
  parser.add_argument('--weights', default='')
  parser.add_argument('--limit', type=int, default=0, help='source images')
  parser.add_argument('--size', type=int, default=64)
  parser.add_argument('--bins', type=int, default=32)
  parser.add_argument('--k', type=int, default=300)
  parser.add_argument('--check', type=int, default=50)
  args = parser.parse_args()
  c = folders.get_config()
  c.target.train, c.source.main.dir = args.target, args.source
  c.describe.bank, c.describe.weights = args.bank, args.weights
  c.describe.resize = c.describe.crop = args.size
  c.describe.bins = args.bins
  c.budget.initial = c.budget.maximum = args.k
  c.target.test = args.target
  target, _ = datasets.open_target(c.target, c.seed)
  source = datasets.open_pool(c.source)
  if args.limit:
    # Spread over the classes, which lie one after the other.
    source = source.subset(
      np.linspace(0, len(source) - 1, args.limit).astype(int)
    )
  if args.out.exists():
    parser.error(f'--out must be a new directory, which {args.out} is not')
  start = time.monotonic()
  found = retrieval.find(c, target, source, args.out, mesh=mesh.make())
  seconds = time.monotonic() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f'{args.bank}: {len(target)} targets x {len(source)} source images, '
    f'K = {args.k}: {seconds:.1f} s, peak memory {peak:.2f} GiB'
  )
  if args.check:
    check(c, args, target, source, found)


def check(c, args, target, source, found):
  """Prints how many of the first lists differ from a brute-force sort."""
  bank = describe.load_bank(c.describe)
  describer = describe.load(
    args.out / 'edges.npz',
    bank,
    mesh=mesh.make(),
    batch=c.describe.batch,
    threads=0,
  )
  picked = np.linspace(0, len(target) - 1, args.check).astype(int)
  (some,) = describer.blocks(target.subset(picked), rows=10**6)
  positions = []

  def stream():
    for block in describer.blocks(source, rows=512):
      positions.append(block.index_n)
      yield block.counts_nd

  # Weights and map sizes as the method states them, not as it holds them.
  filters = np.bincount(bank.layer_c)[bank.layer_c]
  pixels = [h * w for h, w, c_ in bank.shapes for _ in range(c_)]
  distance = brute_force(
    some.counts_nd.astype(float),
    stream(),
    np.repeat(np.array(pixels, float), args.bins),
    np.repeat(1 / filters, args.bins),
  )
  position = np.concatenate(positions)
  differ = 0
  for row, target_index in enumerate(picked):
    mine = found.index_qk[target_index]
    at = np.searchsorted(position, mine)
    best = np.sort(distance[row])[: args.k]
    differ += not np.allclose(distance[row, at], best, rtol=0, atol=1e-9)
  print(f'{differ} of {args.check} lists differ from float64 brute force')


if __name__ == '__main__':
  main()
