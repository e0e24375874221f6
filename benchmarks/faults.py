"""Whether a run of several processes survives what happens to processes.

  python -m benchmarks.faults --directory=DIR [--kills=20] [--processes=2] \
      [--size=demo] [--latest=0.6] [--seed=0]

Starts a run of the demo's size (configs/demo.py:selective), or a small one of
the same data (--size=small), and at a random moment kills a random process
(SIGKILL), stops one (SIGSTOP: a machine that hangs) or has all end (SIGTERM:
preemption). Then it waits until the others have ended, and gives the same
command again; a finished run is checked and another begun, until all kills are
spent. It ends with a table of all kills, which DIR/table.md keeps: kind, where
the run was, seconds until all had ended, their exit codes, what the next start
went on from, and whether neighbours, probabilities and results of the finished
run are, bit for bit, those of a run that nothing happened to. The same command
again goes on after the kills that DIR/log.jsonl holds. The logs of all
processes stay in DIR.

A kill takes the time to get there, at most --latest of the fastest whole run,
and the time to end: SIGSTOP the heartbeat, 30 s, SIGKILL at most as long, or
CONNECT where not all had joined, SIGTERM seconds, or at most 7/8 of SHUTDOWN.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from sjft_jax import round_files, workdirs

ROOT = pathlib.Path(__file__).parent.parent
KINDS = 'SIGKILL', 'SIGSTOP', 'SIGTERM'
HEARTBEAT, SHUTDOWN, CONNECT = 30, 60, 60
# Seconds after which all must have ended. Where not all had joined, a peer that
# is dead looks like one that is late.
LIMITS = {
  'SIGKILL': max(HEARTBEAT, CONNECT),
  'SIGSTOP': max(HEARTBEAT, CONNECT),
  'SIGTERM': SHUTDOWN,
}
# What one may need of that to read a signal and to end, on a busy machine.
SLACK = 15
COLUMNS = (
  'kill', 'of process', 'run', 'where', 'seconds to end', 'exit codes',
  'goes on from', 'bit-identical',
)  # fmt: skip
SETTINGS = {
  'processes.heartbeat': HEARTBEAT,
  'processes.shutdown': SHUTDOWN,
  'processes.connect': CONNECT,
  'threads': 1,
}
SIZES = {
  # So that some kills come before, and some between two checkpoints.
  'demo': {'train.checkpoint_every': 20},
  'small': {
    'source.mnist.quota': 1500,
    'source.photographs.use': False,
    'pretrain.steps': 16,
    'pretrain.batch': 32,
    'pretrain.warmup': 4,
    'rounds': 2,
    'train.steps': 16,
    'train.checkpoint_every': 4,
    'optim.boundaries': '(12,)',
  },
}


def start(workdir, processes, log, size):
  """The processes of one start, in order."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  log.mkdir(parents=True, exist_ok=True)
  settings = SETTINGS | SIZES[size]
  command = [
    sys.executable,
    '-m',
    'sjft_jax.main',
    '--multihost',
    f'--config={ROOT}/configs/demo.py:selective',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in settings.items()),
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


def end(running):
  """Kills what still runs."""
  for process in running:
    process.kill()
    process.wait()


def last_line(path):
  """What a process said last."""
  lines = path.read_text('utf-8', 'replace').strip().splitlines()
  return lines[-1] if lines else ''


def wait(running, seconds):
  """Waits for all; returns those that have not ended."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if all(p.poll() is not None for p in running):
      return []
    time.sleep(0.1)
  return [p for p in running if p.poll() is None]


def position(workdir, since):
  """Where a run is: its last update since a time, or what it goes on from."""
  path = workdir / 'metrics.jsonl'
  lines = []
  if path.exists() and path.stat().st_mtime >= since:
    # A line that is being written may be cut.
    lines = path.read_text().split('\n')[:-1]
  if not lines:
    return f'after {workdirs.reached(workdir)}'
  last = json.loads(lines[-1])
  name = 'pretraining' if last['round'] < 0 else f'round {last["round"]}'
  return f'{name}, update {last["step"]}'


def outcome(workdir):
  """What must not depend on what happened."""
  results = json.loads((workdir / 'results.json').read_text())
  results.pop('seconds')
  found = {'results': json.dumps(results, sort_keys=True).encode()}
  found['neighbours'] = (
    workdir / 'selection' / 'neighbours.parquet'
  ).read_bytes()
  for m in range(len(results['rounds'])):
    stored = round_files.posteriors(round_files.directory(workdir, m))
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


class Series:
  """Starts of runs, and the log of what came of each.

  Args:
    directory: of the runs and their logs.
    processes: of a run.
    size: of SIZES.
    seed: of the moments.
  """

  def __init__(self, directory, processes, size, seed):
    self._directory, self._size, self._seed = directory, size, seed
    self._processes, self._path = processes, directory / 'log.jsonl'
    self._running = ()
    directory.mkdir(parents=True, exist_ok=True)
    lines = self._path.read_text().splitlines() if self._path.exists() else ()
    self.log = [json.loads(line) for line in lines]

  def events(self, kind):
    """What the log holds of a kind: undisturbed, kill or finished."""
    return [event for event in self.log if event['event'] == kind]

  def is_done(self, kills):
    """Whether all kills are spent, and the run of the last is finished."""
    spent = self.events('kill')
    if len(spent) < kills:
      return False
    finished = {event['run'] for event in self.events('finished')}
    return not spent or spent[-1]['run'] in finished

  def _note(self, **event):
    self.log.append(event)
    with self._path.open('a') as file:
      file.write(f'{json.dumps(event)}\n')
    print(sentence(event), flush=True)

  def _start(self, workdir):
    log = self._directory / 'log' / str(len(self.log))
    self._running = start(workdir, self._processes, log, self._size)
    return self._running, log

  def close(self):
    """Ends what was left running."""
    end(self._running)

  def undisturbed(self):
    """Makes the run that nothing happens to, once."""
    if not self.events('undisturbed'):
      # One that was cut short would be faster the second time.
      shutil.rmtree(self._directory / 'undisturbed', ignore_errors=True)
      begun = time.monotonic()
      running, _ = self._start(self._directory / 'undisturbed')
      codes = [process.wait() for process in running]
      if any(codes):
        raise RuntimeError(f'The undisturbed run ended with {codes}.')
      seconds = time.monotonic() - begun
      self._note(event='undisturbed', seconds=seconds)

  def whole(self):
    """Seconds of a run from its beginning to its end, at its fastest.

    The first compiles what others find in the cache, if there is one.
    """
    return min(
      event['seconds']
      for event in self.log
      if event['event'] == 'undisturbed' or event.get('whole')
    )

  def disturb(self, latest, patience):
    """One start, killed within `latest` seconds, or finished before.

    Args:
      latest: seconds; 0 lets it finish.
      patience: seconds it may take to finish.

    Returns:
      Whether it was finished.
    """
    runs, kills = len(self.events('finished')), len(self.events('kill'))
    rng = random.Random(f'{self._seed}-{len(self.log)}')
    workdir = self._directory / f'run-{runs}'
    whole = not workdir.exists()
    started, begun = time.time(), time.monotonic()
    running, log = self._start(workdir)
    delay = rng.uniform(2, latest) if latest else patience
    if not wait(running, delay) or not latest:
      seconds = time.monotonic() - begun
      codes = [process.poll() for process in running]
      if codes != [0] * len(running):
        raise RuntimeError(f'{workdir} ended with {codes} by itself: see {log}')
      expected = outcome(self._directory / 'undisturbed')
      found = outcome(workdir)
      differ = [name for name in expected if found[name] != expected[name]]
      same = [name for name in expected if name not in differ]
      self._note(
        event='finished',
        run=runs,
        seconds=seconds,
        whole=whole,
        codes=codes,
        same=same,
        differ=differ,
      )
      return True
    # Evenly, since kinds are compared.
    kind = KINDS[kills % len(KINDS)]
    where, begun = position(workdir, started), time.monotonic()
    others = kill(rng, running, kind)
    hanging = wait(others, 10 * HEARTBEAT)
    seconds = time.monotonic() - begun
    end(running)
    time.sleep(1)  # for lines that are said for a process that was aborted
    said = [last_line(log / f'{running.index(p)}.log') for p in others]
    self._note(
      event='kill',
      number=kills + 1,
      kind=kind,
      run=runs,
      delay=delay,
      where=where,
      victim=[i for i, p in enumerate(running) if p not in others],
      seconds=seconds,
      hanging=len(hanging),
      codes=[process.returncode for process in others],
      reached=workdirs.reached(workdir),
      said=said,
    )
    return False


def sentence(event):
  """One line of the log, to be read."""
  if event['event'] == 'undisturbed':
    return f'Undisturbed: {event["seconds"]:.0f} s'
  if event['event'] == 'finished':
    return (
      f'Run {event["run"]} finished, codes {event["codes"]}: the same '
      f'{", ".join(event["same"])}; different: '
      f'{", ".join(event["differ"]) or "none"}.'
    )
  return (
    f'{event["number"]:3d} {event["kind"]} of {event["victim"] or "all"} after '
    f'{event["delay"]:5.1f} s ({event["where"]}): '
    f'{"HANGING" if event["hanging"] else "ended"} '
    f'after {event["seconds"]:4.1f} s, codes {event["codes"]}; goes on from '
    f'{event["reached"]}; {event["said"][0][:200]!r}'
  )


def table(series):
  """Markdown: a row for every kill."""
  finished = {event['run']: event for event in series.events('finished')}
  rows = [COLUMNS, ('---',) * len(COLUMNS)]
  for event in series.events('kill'):
    verdict = '?'
    if event['run'] in finished:
      differ = finished[event['run']]['differ']
      verdict = f'no: {", ".join(differ)}' if differ else 'yes'
    rows.append(
      (
        f'{event["number"]} {event["kind"]}',
        ', '.join(map(str, event['victim'])) or 'all',
        event['run'],
        event['where'],
        f'{"hanging, " if event["hanging"] else ""}{event["seconds"]:.1f}',
        ', '.join(map(str, event['codes'])),
        event['reached'],
        verdict,
      )
    )
  return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows)


def report(series):
  """Prints the table, and what it comes to."""
  print(f'\n{table(series)}\n')
  kills = series.events('kill')
  for kind in KINDS:
    of = [event for event in kills if event['kind'] == kind]
    codes = collections.Counter(code for e in of for code in e['codes'])
    unclear = sum(not x.startswith('sjft_jax: ') for e in of for x in e['said'])
    print(
      f'{len(of)} x {kind}: all ended after '
      f'{max((e["seconds"] for e in of), default=0):.1f} s at most, '
      f'{sum(e["seconds"] for e in of) / max(len(of), 1):.1f} s in the mean, '
      f'{sum(e["hanging"] for e in of)} hanging, '
      f'{sum(e["seconds"] > LIMITS[kind] + SLACK for e in of)} later than '
      f'{LIMITS[kind]} + {SLACK} s, codes {dict(codes)}, '
      f'{unclear} without a last line of ours'
    )
  differ = sum(len(event['differ']) for event in series.events('finished'))
  print(
    f'{len(kills)} kills over {len(series.events("finished"))} finished runs '
    f'(heartbeat {HEARTBEAT} s, shutdown {SHUTDOWN} s, connect {CONNECT} s); '
    f'{differ} differences from the undisturbed run.'
  )


def main():
  """Kills until all kills are spent; prints what came of it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--directory', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--size', choices=SIZES, default='demo')
  parser.add_argument('--latest', type=float, default=0.6)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  series = Series(args.directory, args.processes, args.size, args.seed)
  for event in series.log:
    print(sentence(event))
  # So that it leaves no process behind when it is stopped itself.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
  with contextlib.closing(series):
    series.undisturbed()
    while not series.is_done(args.kills):
      # Late enough to come forward, early enough to spend the kills.
      spent, whole = len(series.events('kill')) >= args.kills, series.whole()
      latest = 0 if spent else max(4, args.latest * whole)
      series.disturb(latest, patience=600 + 5 * whole)
  report(series)
  (args.directory / 'table.md').write_text(f'{table(series)}\n')


if __name__ == '__main__':
  main()
