"""Whether a run of several processes survives what happens to processes.

  python -m benchmarks.faults --directory=DIR [--kills=20] [--processes=2] \
      [--seed=0]

Starts a small run (digits beside MNIST, from pip packages), and at a random
moment kills a random process (SIGKILL), stops one (SIGSTOP: a machine that
hangs) or has all end (SIGTERM: preemption). Then it waits until the others have
ended, and gives the same command again; a finished run is checked and another
begun, until all kills are spent. It prints per kill: kind, the stage, seconds
until all had ended, their exit codes, what the next start went on from; and per
finished run whether neighbours, probabilities and results are, bit for bit,
those of a run that nothing happened to. Logs of all processes stay in DIR.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
HEARTBEAT, SHUTDOWN, CONNECT, ROUNDS = 30, 60, 60, 2
SETTINGS = {
  'target.kind': 'packaged',
  'target.name': 'digits',
  'target.per_class': 5,
  'source.main.kind': 'packaged',
  'source.main.name': 'mnist',
  'source.main.quota': 1500,
  'processes.heartbeat': HEARTBEAT,
  'processes.shutdown': SHUTDOWN,
  'processes.connect': CONNECT,
  'threads': 1,
  'describe.resize': 32,
  'describe.crop': 32,
  'budget.initial': 20,
  'budget.maximum': 200,
  'pretrain.steps': 16,
  'pretrain.batch': 32,
  'pretrain.warmup': 4,
  'rounds': ROUNDS,
  'train.resize': 36,
  'train.crop': 32,
  'train.mirror': False,
  'train.steps': 16,
  'train.target_batch': 20,
  'train.source_batch': 20,
  'train.checkpoint_every': 4,
  'optim.boundaries': '(12,)',
  'evaluate.batch': 256,
}


def start(workdir, processes, log):
  """The processes of one start, in order."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  log.mkdir(parents=True)
  command = [
    sys.executable,
    '-m',
    'sjft_jax.main',
    '--multihost',
    f'--config={ROOT}/configs/folders.py',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in SETTINGS.items()),
  ]
  running = []
  for i in range(processes):
    environment = {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '1',
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': f'{processes}',
      'JAX_PROCESS_ID': f'{i}',
    }
    with open(log / f'{i}.log', 'w', encoding='utf-8') as file:
      running.append(
        subprocess.Popen(
          command,
          cwd=ROOT,
          env=os.environ | environment,
          stdout=file,
          stderr=subprocess.STDOUT,
        )
      )
  return running


def last_line(path):
  """What a process said last."""
  lines = path.read_text('utf-8', 'replace').strip().splitlines()
  return lines[-1] if lines else ''


def reached(workdir):
  """What a start would go on from."""
  for directory, name in (
    *((f'rounds/{m}', f'round {m}') for m in reversed(range(ROUNDS))),
    ('pretrain', 'pretraining'),
  ):
    steps = [
      int(path.name)
      for path in (workdir / directory).glob('checkpoint/*')
      if re.fullmatch('[0-9]+', path.name)
    ]
    if steps:
      return f'{name}, update {max(steps)}'
  for path, name in (
    ('pretrain/trunk.safetensors', 'the pretrained trunk'),
    ('selection/neighbours.parquet', 'the neighbours'),
    ('selection/edges.npz', 'the edges'),
    ('guard/record.json', 'the guard'),
  ):
    if (workdir / path).exists():
      return name
  return 'the beginning'


def wait(running, seconds):
  """Waits for all; returns those that have not ended."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if all(p.poll() is not None for p in running):
      return []
    time.sleep(0.1)
  return [p for p in running if p.poll() is None]


def outcome(workdir):
  """What must not depend on what happened."""
  results = json.loads((workdir / 'results.json').read_text())
  results.pop('seconds')
  found = {'results': json.dumps(results, sort_keys=True).encode()}
  found['neighbours'] = (
    workdir / 'selection' / 'neighbours.parquet'
  ).read_bytes()
  for m in range(ROUNDS):
    with np.load(workdir / 'rounds' / str(m) / 'posteriors.npz') as stored:
      found[f'probabilities of round {m}'] = (
        stored['train_probability'].tobytes()
        + stored['test_probability'].tobytes()
      )
  return found


def kill(rng, running, kind):
  """Does it; returns the processes that must end by themselves."""
  if kind == 'SIGTERM':
    for process in running:
      process.send_signal(signal.SIGTERM)
    return running
  victim = rng.choice(running)
  victim.send_signal(getattr(signal, kind))
  return [p for p in running if p is not victim]


def main():
  """Kills until all kills are spent; prints what came of it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--directory', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  shutil.rmtree(args.directory, ignore_errors=True)

  begun = time.monotonic()
  running = start(
    args.directory / 'undisturbed', args.processes, args.directory / 'log' / '0'
  )
  for process in running:
    process.wait()
  whole = time.monotonic() - begun
  expected = outcome(args.directory / 'undisturbed')
  print(f'Undisturbed: {whole:.0f} s, {args.processes} processes', flush=True)

  spent, runs, longest, differ, finished = 0, 0, 0.0, [], True
  while spent < args.kills or not finished:
    if finished:
      workdir, finished = args.directory / f'run-{runs}', False
      runs += 1
    number = len(list((args.directory / 'log').iterdir()))
    log = args.directory / 'log' / str(number)
    running = start(workdir, args.processes, log)
    # Late enough to come forward, early enough to spend the kills.
    delay = rng.uniform(2, 0.6 * whole) if spent < args.kills else 1e9
    left = wait(running, delay)
    if left:
      kind = rng.choice(('SIGKILL', 'SIGSTOP', 'SIGTERM'))
      begun = time.monotonic()
      others = kill(rng, running, kind)
      hanging = wait(others, 10 * HEARTBEAT)
      seconds = time.monotonic() - begun
      for process in running:
        process.kill()
        process.wait()
      spent, longest = spent + 1, max(longest, seconds)
      codes = [process.returncode for process in others]
      line = last_line(log / f'{running.index(others[0])}.log')
      print(
        f'{spent:3d} {kind} after {delay:5.1f} s: '
        f'{"HANGING" if hanging else "ended"} after {seconds:4.1f} s, codes '
        f'{codes}; goes on from {reached(workdir)}; {line[:200]!r}',
        flush=True,
      )
      continue
    codes = [process.returncode for process in running]
    found = outcome(workdir)
    differ += [name for name in expected if found[name] != expected[name]]
    same = ', '.join(
      f'{name} {"the same" if found[name] == expected[name] else "DIFFER"}'
      for name in expected
    )
    print(f'Run {runs - 1} finished, codes {codes}: {same}', flush=True)
    finished = True
  print(
    f'{spent} kills over {runs} runs; the longest took {longest:.1f} s to end '
    f'all (heartbeat {HEARTBEAT} s, shutdown {SHUTDOWN} s); '
    f'{len(differ)} differences from the undisturbed run.'
  )


if __name__ == '__main__':
  main()
