"""How fast images are described, against what a user would compose.

  python -m benchmarks.descriptors [--images=DIR] [--python=PYTHON] \
      [--rounds=5] [--cases=gabor-64,gabor-224,alexnet-64,alexnet-224]
  python -m benchmarks.descriptors --whole=DIR [--bank=conv --weights=FILE]

The first form times whole descriptors, from RGB bytes to counts, of this
project and of every peer that PYTHON can import (the `benchmark` extra). Each
is a process of its own; they take turns, and the median counts. DIR holds
images by class; without it, blurred noise is described.

The second form describes every image under DIR, at 64 pixels, and tells how
long decoding alone, the transfer to the devices, responses and histograms take.

Operations per image, h pixels a side, of the Gabor bank: a filter passes k x m
frequencies; its table takes t k m products, its two matrix products
t k m h/2 + t k h h/4 multiply-adds, where t is 2 or 4 sums; the last one
t h h/4 x 4 x channels. A histogram with b bins takes (b - 1) comparisons and
additions per pixel and channel. The floor is the multiply-adds at the rate of a
large float32 product, measured in the same run.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.descriptor_peers import peak_memory
from configs import default
from sjft_jax import describe
from sjft_jax import mesh as meshes
from sjft_jax.data import datasets, pipelines
from sjft_jax.models import alexnet, convention, weight_files
from sjft_jax.ops import gabor, histograms

ROOT = pathlib.Path(__file__).parent.parent
# case -> (bank, side, bins, images, peers).
CASES = {
  'gabor-64': ('gabor', 64, 32, 64, ('scipy', 'opencv', 'torch', 'skimage')),
  'gabor-224': ('gabor', 224, 32, 16, ('scipy', 'opencv', 'torch')),
  'alexnet-64': ('conv', 64, 100, 64, ('torch_alexnet',)),
  'alexnet-224': ('conv', 224, 100, 16, ('torch_alexnet',)),
}


def main():
  """Measures, prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', default=','.join(CASES))
  parser.add_argument('--images', default='')
  parser.add_argument('--python', default=sys.executable)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--whole', default='')
  parser.add_argument('--bank', default='gabor')
  parser.add_argument('--weights', default='')
  parser.add_argument('--serve', nargs=3, default=(), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(*args.serve)
  elif args.whole:
    whole(args)
  else:
    print(jax.devices()[0].device_kind, jax.__version__)
    for case in args.cases.split(','):
      with tempfile.TemporaryDirectory() as directory:
        compare(case, args, pathlib.Path(directory))


def settings(bank, side, weights='', decimate=False):
  """The `describe` settings of a case."""
  c = default.get_config().describe
  c.bank, c.weights, c.decimate = bank, weights, decimate
  c.resize = c.crop = side
  return c


def photographs(directory, count, side):
  """uint8 RGB [count, side, side, 3], spread over a folder, or noise."""
  if not directory:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    return np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in noise])
  pool = datasets.open_pool({'main': {'kind': 'folder', 'dir': directory}})
  pool = pool.subset(np.linspace(0, len(pool) - 1, count).astype(int))
  (block,) = pipelines.sweep(
    pool, resize=side, crop=side, batch=count, threads=0
  )
  return block.image


def compare(case, args, directory):
  """One case: every implementation in turn, a row each."""
  bank, side, bins, count, peers = CASES[case]
  image = photographs(args.images, count, side)
  path = directory / 'case.npz'
  weights = prepare(bank, image, bins, path)
  ours = [sys.executable, '-m', 'benchmarks.descriptors', '--serve']
  theirs = [args.python, ROOT / 'benchmarks' / 'descriptor_peers.py']
  commands = {'sjft_jax': [*ours, case, path, weights]}
  if bank == 'gabor':
    commands['sjft_jax, decimated'] = [*ours, f'{case}+', path, weights]
  commands |= {peer: [*theirs, peer, path] for peer in peers}
  workers, seconds = {}, {}
  for name, command in commands.items():
    worker = subprocess.Popen(
      list(map(str, command)),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=ROOT,
    )
    if worker.stdout.readline().strip() == 'ready':
      workers[name], seconds[name] = worker, []
    else:
      print(f'{case}: {name} is not there')
  for _ in range(args.rounds):
    for name, worker in workers.items():
      print('run', file=worker.stdin, flush=True)
      seconds[name].append(float(worker.stdout.readline()))
  rates = {}
  for name, worker in workers.items():
    print('end', file=worker.stdin, flush=True)
    memory = float(worker.stdout.readline())
    images = 1 if name == 'skimage' else count
    rates[name] = images / np.median(seconds[name])
    print(
      f'{case:12} {name:20} {rates[name]:8.1f} images/s, {memory:.2f} GiB, '
      f'sjft_jax / this = {rates["sjft_jax"] / rates[name]:.2f}'
    )
  floor(case, bank, side, bins, rates['sjft_jax'])


def prepare(bank, image, bins, path):
  """Writes the case for the peers; returns the path of ours' weights."""
  if bank == 'gabor':
    values = _responses(settings(bank, image.shape[1]), image[:8])
    edges = [histograms.quantile_edges(v, bins)[0] for v in values]
    kernels = {
      f'kernel{i}': _cut(k).astype(np.complex64)
      for i, k in enumerate(gabor.bank())
    }
    np.savez(path, image=image, edges=np.concatenate(edges), **kernels)
    return ''
  rng = np.random.default_rng(0)
  shapes = alexnet.CAFFE.shapes()
  arrays = {
    name: [rng.normal(0, 0.02, shape).astype(np.float32) for shape in shapes]
    for name, shapes in shapes.items()
  }
  weights = path.with_name('alexnet.safetensors')
  weight_files.write(
    weights,
    weight_files.Weights(
      network='alexnet_caffe',
      convention=convention.CAFFE_MEAN_IMAGE,
      tensors={
        f'{weight_files.TRUNK[0]}{name}/{part}': array
        for name, pair in arrays.items()
        for part, array in zip(('kernel', 'bias'), pair, strict=True)
      },
    ),
  )
  values = _responses(settings(bank, image.shape[1], str(weights)), image[:8])
  edges = {
    f'edges{i}': histograms.quantile_edges(v, bins)[0]
    for i, v in enumerate(values, 1)
  }
  torch = {
    f'{letter}{i}': array.transpose(3, 2, 0, 1) if letter == 'w' else array
    for i in (1, 2)
    for letter, array in zip('wb', arrays[f'conv{i}'], strict=True)
  }
  np.savez(path, image=image, **edges, **torch)
  return weights


def _responses(c, image):
  """[channels, values] of every map."""
  maps = jax.jit(describe.load_bank(c).responses)(image)
  return [np.asarray(m).reshape(-1, m.shape[-1]).T for m in maps]


def _cut(kernel_oyx):
  """The taps within three sigma, half of what the bank has."""
  radius = kernel_oyx.shape[-1] // 2
  cut = radius - -(-radius // 2)
  return kernel_oyx[:, cut:-cut, cut:-cut]


def serve(case, path, weights):
  """Our side of the protocol of descriptor_peers."""
  bank, side, *_ = CASES[case.removesuffix('+')]
  with np.load(path, allow_pickle=False) as stored:
    image = stored['image']
    names = ['edges'] if bank == 'gabor' else ['edges1', 'edges2']
    edges_cb = np.concatenate([stored[name] for name in names])
  describer = describe.Describer(
    bank=describe.load_bank(settings(bank, side, weights, case.endswith('+'))),
    edges_cb=edges_cb,
    lower_c=edges_cb[:, 0],
    upper_c=edges_cb[:, -1],
    mesh=meshes.make(),
    batch=len(image),
    threads=1,
  )
  jax.block_until_ready(describer.counts(image))
  print('ready', flush=True)
  for line in sys.stdin:
    if line.strip() != 'run':
      break
    start = time.perf_counter()
    jax.block_until_ready(describer.counts(image))
    print(time.perf_counter() - start, flush=True)
  print(peak_memory(), flush=True)


def floor(case, bank, side, bins, rate):
  """Prints the operations of an image, and their share of the time."""
  if bank != 'gabor':
    return
  filters = gabor.prepare(gabor.bank(), side, side, (1, 1, 1, 1))
  work = 0
  for filter_ in (f for scale in filters for f in scale):
    t, fold_m, fold_k, k, m = filter_.table.shape
    y, x = filter_.row.shape[-2], filter_.column.shape[-1]
    work += t * fold_m * fold_k * (k * m * x + k * y * x)
    work += filter_.sign.size * y * x
  compared = 48 * side * side * (bins - 1)
  n = 2048
  square = jnp.ones((n, n))
  product = jax.jit(jnp.matmul)
  product(square, square).block_until_ready()
  times = []
  for _ in range(5):
    start = time.perf_counter()
    product(square, square).block_until_ready()
    times.append(time.perf_counter() - start)
  peak = 2 * n**3 / np.median(times)
  print(
    f'{case:12} {2 * work / 1e6:.0f} MFLOP of products and '
    f'{compared / 1e6:.0f} M comparisons an image; at the {peak / 1e9:.0f} '
    f'GFLOP/s of a large product the former take '
    f'{2 * work / peak * rate:.0%} of the time'
  )


def whole(args):
  """Describes a whole folder; how the time divides."""
  pool = datasets.open_pool({'main': {'kind': 'folder', 'dir': args.whole}})
  c = settings(args.bank, 64, args.weights)
  bank = describe.load_bank(c)
  some = pool.subset(np.linspace(0, len(pool) - 1, 500).astype(int))
  run_on = dict(mesh=meshes.make(), batch=64, threads=0)
  describer = describe.fit(bank, some, bins=c.bins, partly=True, **run_on)
  for _ in describer.blocks(some):  # Compiles.
    pass

  split = jax.sharding.PartitionSpec(meshes.AXIS)
  responses = jax.jit(
    jax.shard_map(
      bank.responses, mesh=describer.mesh, in_specs=split, out_specs=split
    )
  )

  def decoded():
    return pipelines.sweep(
      pool, resize=64, crop=64, batch=64, threads=run_on['threads']
    )

  def each(function):
    """Seconds of a function of every batch, decoding left out."""
    seconds = 0
    for block in decoded():
      start = time.perf_counter()
      jax.block_until_ready(function(block.image))
      seconds += time.perf_counter() - start
    return seconds

  def place(image):
    return meshes.shard(image, describer.mesh)

  some_image = place(next(decoded()).image)
  jax.block_until_ready(responses(some_image))
  start = time.perf_counter()
  for _ in decoded():
    pass
  alone = {'decoding': time.perf_counter() - start, 'transfer': each(place)}
  for name, function in {
    'responses': responses,
    'responses and histograms': describer.counts,
  }.items():
    both = each(lambda image, function=function: function(place(image)))
    alone[name] = both - alone['transfer']
  describer.waited.update(images=0.0, devices=0.0)
  start = time.perf_counter()
  for _ in describer.blocks(pool):
    pass
  seconds = time.perf_counter() - start
  print(
    f'{args.bank}, 64 pixels, {len(pool)} images: {seconds:.1f} s, '
    f'{len(pool) / seconds:.0f} images/s, peak memory {peak_memory():.2f} GiB'
  )
  print('waited, s:', *(f'{k} {v:.1f}' for k, v in describer.waited.items()))
  print('each alone, s:', *(f'{k} {v:.1f}' for k, v in alone.items()))


if __name__ == '__main__':
  main()
