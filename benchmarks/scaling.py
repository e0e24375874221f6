"""What more processes and devices buy, and what they say to each other.

  python -m benchmarks.scaling [--size=full|quick] [--no_times|--no_bytes]

Describes and searches MNIST for digits, and trains the small network of
configs/folders.py, in 1, 2 and 4 processes of one CPU device each, and in one
process of 2 and 4 devices: with all work constant, and with that of each device
constant (source images, and images of a micro-batch). A table of seconds, and
of processor seconds of all processes together; on C cores nothing can be faster
than on C devices, and C is printed.

Then the bytes of the collectives of one update of ResNet-50 (full width, ten
micro-batches, eight devices), counted in the program that XLA compiled, against
the least possible, the gradient once, for `model.statistics` and
`train.sharded`; and what two processes that search say to each other. With
--size=quick all is smaller, to see that it works: its seconds mean nothing.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from configs import default
from sjft_jax import describe, optim, processes, search, streams, train
from sjft_jax import mesh as meshes
from sjft_jax.data import datasets
from sjft_jax.models import resnet, trunks, two_heads

ROOT = pathlib.Path(__file__).parent.parent
NEIGHBOURS = 100


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is done.

  layouts: (processes, devices of each).
  source, half: images of the source and of half a micro-batch, where the work
    of all is constant; of a device it is a quarter.
  steps: updates.
  trunk, width: of the network whose collectives are counted.
  """

  layouts: tuple[tuple[int, int], ...]
  source: int
  half: int
  steps: int
  trunk: str
  width: float


SIZES = {
  'full': Size(
    ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4)), 4096, 32, 4, 'resnet50', 1.0
  ),
  'quick': Size(((1, 1), (2, 1), (1, 2)), 512, 8, 1, 'resnet26', 0.25),
}
_KINDS = 'all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all'
_COLLECTIVE = re.compile(rf'= (.+?) ({_KINDS})(?:-start)?\(')
_SHAPE = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\]')


# --- What is said -------------------------------------------------------------


def collectives(text, times=1):
  """Bytes of the results of the collectives in a compiled program.

  Args:
    text: HLO of one device's program.
    times: how often its loop runs.

  Returns:
    Counter of kind -> bytes.
  """
  bodies = set(re.findall(r'body=%?([\w.-]+)', text))
  found, computation = collections.Counter(), ''
  for line in text.splitlines():
    if line[:1].strip() and line.rstrip().endswith('{'):
      computation = line.removeprefix('ENTRY ').lstrip('%').split(' ')[0]
    if match := _COLLECTIVE.search(line):
      size = sum(
        (int(re.sub(r'\D', '', kind) or 8) // 8)
        * math.prod(int(n) for n in sides.split(',') if n)
        for kind, sides in _SHAPE.findall(match[1])
      )
      found[match[2]] += size * (times if computation in bodies else 1)
  return found


def network(trunk, width, statistics='global'):
  """(model, optimiser, schedule) of some classes."""
  made = resnet.TRUNKS[trunk](
    width=width, axis_name=trunks.STATISTICS[statistics]
  )
  schedule = optax.constant_schedule(0.01)
  model = two_heads.TwoHeads(made, target_classes=120, source_classes=1000)
  return model, optim.sgd(schedule), schedule


def count_update(trunk, width, statistics, sharded, micro_batches=10):
  """(bytes by kind of collective, bytes of the gradient) of an update."""
  mesh = meshes.make()
  model, tx, schedule = network(trunk, width, statistics)
  step = train.make_step(model, tx, schedule, mesh, scan=True, sharded=sharded)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)

  def begin(key, image):
    variables = model.init(key, image, image, train=False)
    params, stats = variables['params'], variables['batch_stats']
    return train.State(jax.numpy.int32(0), params, stats, tx.init(params))

  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      sharding=meshes.parameter_sharding(x.shape, mesh, sharded),
    ),
    jax.eval_shape(begin, jax.random.key(0), image),
  )
  batch = {
    f'{half}_{part}': jax.ShapeDtypeStruct(
      (micro_batches, mesh.size, *shape),
      dtype,
      sharding=meshes.sharding(mesh, 1),
    )
    for half in ('target', 'source')
    for part, shape, dtype in (
      ('image', image.shape[1:], np.uint8),
      ('label', (), np.int32),
    )
  }
  text = step.lower(state, batch).compile().as_text()
  gradient = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  return collectives(text, micro_batches), gradient


# --- How long it takes --------------------------------------------------------


def open_sets(images):
  """Digits as the target, so many images of MNIST as the source."""
  target = datasets.open_pool(
    {'target': {'kind': 'packaged', 'name': 'digits'}}
  )
  source = ConfigDict(
    {'m': default.source(kind='packaged', name='mnist', quota=images)}
  )
  return target.subset(np.arange(256)), datasets.open_pool(source)


def measure(images, half, steps, directory):
  """Seconds of each stage in the slowest process, and processor seconds."""
  index, count = meshes.share()
  mesh, mine = meshes.make(), meshes.own(meshes.make())
  target, source = open_sets(images)
  c = default.get_config().describe
  c.resize = c.crop = 32
  run_on = dict(mesh=mine, batch=64, threads=1)
  describer = describe.fit(describe.load_bank(c), target, bins=32, **run_on)
  share = source.subset(np.arange(index, len(source), count))
  found = {}

  def timed(name, work):
    processes.meet()
    start, processor = time.monotonic(), time.process_time()
    work()
    spent = processes.gathered(
      [time.monotonic() - start, time.process_time() - processor]
    )
    found[name] = max(s for s, _ in spent), sum(p for _, p in spent)

  def describe_all(dataset):
    for _ in describer.blocks(dataset):
      pass

  def search_in(dataset, **shared):
    search.nearest(
      streams.Described(describer, target),
      streams.Described(describer, dataset),
      k=NEIGHBOURS,
      mesh=mine,
      **shared,
    )

  # Compiles; the search, what it does with its first block and with others.
  search_in(source.subset(np.arange(min(len(source), 1100))))
  timed('describe', lambda: describe_all(share))
  shards = pathlib.Path(directory) / 'shards'
  timed(
    'describe and search',
    lambda: search_in(source, directory=shards, share=(index, count)),
  )
  tables = sum(path.stat().st_size for path in shards.glob('*.npz'))
  search.clear(shards)

  model, tx, schedule = network('resnet26', 0.25)
  state = train.begin(train.init(model, 0), tx, mesh)
  step = train.make_step(model, tx, schedule, mesh)
  rng = np.random.default_rng(index)
  part = 2, half // count
  batch = {
    f'{name}_{kind}': values
    for name in ('target', 'source')
    for kind, values in (
      ('image', rng.integers(0, 256, (*part, 64, 64, 3), np.uint8)),
      ('label', rng.integers(0, 100, part).astype(np.int32)),
    )
  }
  batch = meshes.shard(batch, mesh, axis=1)
  state, _ = jax.block_until_ready(step(state, batch))  # compiles

  def updates():
    nonlocal state
    for _ in range(steps):
      state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  timed('train', updates)
  return {'seconds': found, 'tables': tables}


# --- Processes ----------------------------------------------------------------


def start(count, devices, *args, flags=''):
  """What the first of some processes prints, as JSON."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': f'{devices}',
    'XLA_FLAGS': flags,
  }
  errors = [tempfile.TemporaryFile('w+') for _ in range(count)]  # noqa: SIM115
  running = [
    subprocess.Popen(
      [
        *(sys.executable, '-m', 'benchmarks.scaling', '--worker'),
        f'{address},{count},{i}',
        *map(str, args),
      ],
      cwd=ROOT,
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=errors[i],
      text=True,
    )
    for i in range(count)
  ]
  said = [process.communicate()[0] for process in running]
  for process, file in zip(running, errors, strict=True):
    with file:
      file.seek(0)
      if process.returncode:
        raise RuntimeError(f'{count=}, {devices=}, {args=}: {file.read()}')
  return json.loads(said[0].splitlines()[-1])


def worker(where, what, *args):
  """One of the processes."""
  address, count, index = where.split(',')
  if what == 'count':
    trunk, width, statistics, sharded = args
    found, gradient = count_update(
      trunk, float(width), statistics, sharded == 'True'
    )
    print(json.dumps([found, gradient]))
    return
  if int(count) > 1:
    times = dict(heartbeat=60, shutdown=60, connect=120)
    processes.start(address, int(count), int(index), **times)
  images, half, steps, directory = args
  print(json.dumps(measure(int(images), int(half), int(steps), directory)))
  processes.leave(0)


def print_times(size):
  """The table of seconds."""
  print(f'{os.cpu_count()} cores. Seconds (processor seconds of all processes)')
  names = 'describe', 'describe and search', 'train'
  head = 'work constant', 'processes x devices', *names
  print(' | '.join(f'{name:>19}' for name in head))
  for of in ('of all', 'of a device'):
    for count, devices in size.layouts:
      parts = 1 if of == 'of all' else 4 / (count * devices)
      work = round(size.source / parts), round(size.half / parts), size.steps
      with tempfile.TemporaryDirectory() as directory:
        found = start(count, devices, 'time', *work, directory)['seconds']
      cells = [f'{found[x][0]:.1f} ({found[x][1]:.1f})' for x in names]
      row = of, f'{count} x {devices}', *cells
      print(' | '.join(f'{cell:>19}' for cell in row), flush=True)


def print_bytes(size):
  """What an update and a search say."""
  print(
    f'\n{size.trunk} x {size.width}, ten micro-batches, eight devices; MB of '
    'one update:'
  )
  for statistics, sharded in (
    ('device', False),
    ('global', False),
    ('device', True),
  ):
    found, gradient = start(
      1, 8, 'count', size.trunk, size.width, statistics, sharded
    )
    kinds = ', '.join(f'{k} {v / 1e6:.1f}' for k, v in sorted(found.items()))
    print(
      f'statistics={statistics}, sharded={sharded}: {kinds}; the gradient is '
      f'{gradient / 1e6:.1f}, in all {sum(found.values()) / gradient:.2f} x',
      flush=True,
    )
  with tempfile.TemporaryDirectory() as directory:
    dump = pathlib.Path(directory) / 'hlo'
    flags = f'--xla_dump_to={dump} --xla_dump_hlo_as_text'
    work = size.source // 2, size.half // 2, 1
    found = start(2, 1, 'time', *work, directory, flags=flags)
    said = collections.Counter()
    for path in dump.glob('*after_optimizations.txt'):
      name = path.name.split('.')[1]
      said[name] += sum(collectives(path.read_text()).values())
  pairs = 256 * NEIGHBOURS
  print(
    f'\nSearch in two processes: tables of {found["tables"]:,} bytes, '
    f'{found["tables"] / pairs:.1f} for each of {pairs:,} neighbours. Of '
    f'{len(said)} kinds of programs of the whole worker, these have '
    'collectives (bytes):'
  )
  for name, size in said.most_common():
    if size:
      print(f'  {name}: {size:,}')


def main():
  """Prints both parts."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--worker', nargs='+', help=argparse.SUPPRESS)
  parser.add_argument('--size', choices=SIZES, default='full')
  parser.add_argument('--no_times', action='store_true')
  parser.add_argument('--no_bytes', action='store_true')
  args = parser.parse_args()
  if args.worker:
    worker(*args.worker)
    return
  if not args.no_times:
    print_times(SIZES[args.size])
  if not args.no_bytes:
    print_bytes(SIZES[args.size])


if __name__ == '__main__':
  main()
