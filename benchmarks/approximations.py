"""How far cheaper descriptors move the neighbours.

  python -m benchmarks.approximations --target=DIR --source=DIR \
      [--targets=200] [--sources=10000] [--size=64] \
      [--bank=conv --weights=FILE --bins=100]

Compares the K nearest by exact descriptors with those by

- the coarse Gabor scales at fewer points (describe.decimate),
- edges moved to fine bins of the source (describe.fine_bins),
- JPEGs decoded at a part of their size (describe.reduced), which only matters
  where both sides are at least twice --size,
- the release's binning (describe.binning=caffe),
- images resized by OpenCV in one step where `preprocess.resize` takes two: the
  same areas, rounded otherwise; matters where sides are 1 to 2 times --size,

and prints, for K = 10, 100 and 300, the share of the exact neighbours that are
found again. A random choice would find K / sources of them.
"""

import argparse
import contextlib
from unittest import mock

import cv2
import numpy as np

from configs import default
from sjft_jax import describe, reuse, search, streams
from sjft_jax import mesh as meshes
from sjft_jax.data import datasets, preprocess

FINE = (128, 512, 2048)
RANKS = (10, 100, 300)


def main():
  """Searches once per kind of descriptor."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--target', required=True)
  parser.add_argument('--source', required=True)
  parser.add_argument('--targets', type=int, default=200)
  parser.add_argument('--sources', type=int, default=10000)
  parser.add_argument('--size', type=int, default=64)
  parser.add_argument('--bank', default='gabor')
  parser.add_argument('--weights', default='')
  parser.add_argument('--bins', type=int, default=32)
  args = parser.parse_args()
  target, source = (
    spread(directory, count)
    for directory, count in (
      (args.target, args.targets),
      (args.source, args.sources),
    )
  )
  exact = found(args, target, source)
  print(
    f'{args.bank}, {args.size} pixels, {args.bins} bins, {len(target)} targets,'
    f' {len(source)} source images'
  )
  tried = {
    'reduced': {'reduced': True},
    'caffe binning': {'binning': 'caffe'},
    'one step': {'one_step': True},
  }
  if args.bank == 'gabor':
    tried['decimated'] = {'decimate': True}
  tried |= {f'{n} fine bins': {'fine_bins': n} for n in FINE}
  for name, changes in tried.items():
    other = found(args, target, source, **changes)
    shares = [
      np.mean(
        [
          len(np.intersect1d(a[:k], b[:k])) / k
          for a, b in zip(exact, other, strict=True)
        ]
      )
      for k in RANKS
    ]
    columns = ', '.join(
      f'K = {k}: {share:.1%}' for k, share in zip(RANKS, shares, strict=True)
    )
    print(f'{name:16} {columns}', flush=True)


def spread(directory, count):
  """Images spread over the classes of a folder."""
  pool = datasets.open_pool({'main': {'kind': 'folder', 'dir': directory}})
  count = min(count, len(pool))
  return pool.subset(np.linspace(0, len(pool) - 1, count).astype(int))


def found(
  args,
  target,
  source,
  fine_bins=0,
  binning='paper',
  decimate=False,
  reduced=False,
  one_step=False,
):
  """Positions of the nearest by one kind of descriptor, int [q, k]."""
  c = default.get_config().describe
  c.bank, c.weights, c.decimate = args.bank, args.weights, decimate
  c.resize = c.crop = args.size
  c.reduced = reduced
  bank = describe.load_bank(c)
  run_on = dict(mesh=meshes.make(), batch=64, threads=0)
  with contextlib.ExitStack() as stack:
    if one_step:
      stack.enter_context(mock.patch.object(preprocess, 'resize', areas))
    describer = describe.fit(
      bank, target, bins=args.bins, binning=binning, **run_on
    )
    if fine_bins:
      fine = reuse.fit_fine(bank, source, bins=fine_bins, **run_on)
      describer = reuse.snap(describer, fine)
    result = search.nearest(
      streams.Described(describer, target),
      streams.Described(describer, source),
      k=max(RANKS),
      mesh=run_on['mesh'],
    )
  return result.table.index_qk


def areas(image, size):
  """OpenCV's average by areas."""
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


if __name__ == '__main__':
  main()
