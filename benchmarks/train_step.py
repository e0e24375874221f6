"""How fast an update is, against the same network in PyTorch.

  python -m benchmarks.train_step [--cases=resnet26,resnet50,resnet152] \
      [--dtypes=float32,bfloat16] [--update] [--torch=PYTHON]

Times one micro-batch of random images (10 target and 10 source images at 224
pixels, 32 and 32 at 64) through network, both losses, gradient and update.
--update adds one whole update of ResNet-152, ten micro-batches, with and
without rematerialisation. PYTHON is an interpreter with torch (the `benchmark`
extra); without one there is no comparison. Each row is a process of its own:
seconds of the fastest step and of the median, processor seconds of the step
that took fewest (two cores at work: twice the seconds; they say most where the
machine is shared), seconds to trace and compile, and peak memory of the
process. "x torch" compares images a second of the fastest steps, and in
brackets images a processor second.
"""

import argparse
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import optax

from sjft_jax import mesh as meshes
from sjft_jax import optim, train
from sjft_jax.models import resnet, two_heads

ROOT = pathlib.Path(__file__).parent.parent
CASES = {
  'resnet26': dict(trunk='resnet26', width=0.5, size=64, half=32, steps=15),
  'resnet50': dict(trunk='resnet50', width=0.5, size=64, half=32, steps=10),
  'resnet152': dict(trunk='resnet152', width=1.0, size=224, half=10, steps=3),
}
UPDATE = CASES['resnet152'] | dict(micro_batches=10, steps=1)


def measure(case):
  """Prints what one network costs here, as JSON."""
  trunk = resnet.TRUNKS[case['trunk']](
    width=case['width'], dtype=case['dtype'], remat=case.get('remat', False)
  )
  model = two_heads.TwoHeads(trunk, target_classes=100, source_classes=1000)
  mesh = meshes.make()
  schedule = optax.constant_schedule(0.01)
  tx = optim.sgd(schedule)
  state = train.begin(train.init(model, 0), tx, mesh)
  step = train.make_step(model, tx, schedule, mesh)
  rng = np.random.default_rng(0)
  m, half, size = case.get('micro_batches', 1), case['half'], case['size']
  batch = {}
  for name in ('target', 'source'):
    image = rng.integers(0, 256, (m, half, size, size, 3), np.uint8)
    batch[f'{name}_image'] = image
    batch[f'{name}_label'] = rng.integers(0, 100, (m, half), np.int32)
  batch = meshes.shard(batch, mesh, axis=1)
  seconds, processor = [], []
  for _ in range(case['steps'] + 1):
    start, start_processor = time.monotonic(), time.process_time()
    state, _ = jax.block_until_ready(step(state, batch))
    seconds.append(time.monotonic() - start)
    processor.append(time.process_time() - start_processor)
  row = {
    'seconds': min(seconds[1:]),
    'median': statistics.median(seconds[1:]),
    'processor': min(processor[1:]),
    # The first step compiles.
    'compile': seconds[0] - statistics.median(seconds[1:]),
    'images': 2 * half * m,
    'peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  }
  print(json.dumps(row))


def run(command, case):
  """One process; its last line is a row."""
  done = subprocess.run(
    [*command, json.dumps(case)], cwd=ROOT, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def show(name, row, peer=None):
  """Prints a row, with its speed relative to the peer's."""
  text = (
    f'{name:<38} {row["seconds"]:>8.3f} {row["median"]:>8.3f} '
    f'{row["processor"]:>9.3f} {row["images"] / row["seconds"]:>8.2f} '
    f'{row["compile"]:>7.1f} {row["peak_gib"]:>8.2f}'
  )
  if peer:
    ratio, processor = (
      peer[key] / row[key] for key in ('seconds', 'processor')
    )
    text += f' {ratio:>8.2f} ({processor:.2f})'
  print(text, flush=True)


def main():
  """Measures and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', default='resnet26,resnet50,resnet152')
  parser.add_argument('--dtypes', default='float32')
  parser.add_argument('--update', action='store_true')
  parser.add_argument('--torch', default='', metavar='PYTHON')
  parser.add_argument('--measure', default='', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    measure(json.loads(args.measure))
    return
  mine = [sys.executable, '-m', 'benchmarks.train_step', '--measure']
  theirs = [args.torch, str(ROOT / 'benchmarks' / 'torch_step.py')]
  device = jax.devices()[0].device_kind
  print(f'jax {jax.__version__} on {device}, {platform.machine()}')
  print(
    f'{"":<38} {"fastest":>8} {"median":>8} {"processor":>9} {"images/s":>8} '
    f'{"compile":>7} {"peak GiB":>8} {"x torch":>8}'
  )
  for name in filter(None, args.cases.split(',')):
    for dtype in args.dtypes.split(','):
      case = CASES[name] | dict(dtype=dtype)
      title = f'{name} x {case["width"]}, {case["size"]} px, {dtype}'
      peer = None
      if args.torch:
        peer = run(theirs, case)
        show(f'{title}, torch', peer)
      show(title, run(mine, case), peer)
  if args.update:
    for remat in (False, True):
      row = run(mine, UPDATE | dict(dtype='float32', remat=remat))
      with_ = 'rematerialised' if remat else 'as it is'
      show(f'resnet152, whole update, {with_}', row)


if __name__ == '__main__':
  main()
