"""What real processes share leaves the bytes that one process leaves."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from sjft_jax import (
  checkpoints,
  describe,
  main,
  mesh,
  metrics,
  processes,
  retrieval,
  search,
  tables,
)
from sjft_jax.command import guarded
from sjft_jax.data import pipelines
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError
from sjft_jax.models import resnet, trunks
from tests import digits, scenes, small, store
from tests.described import Describer, Stream, counts

ROOT = pathlib.Path(__file__).parent.parent
# By which devices tell each other something, in a compiled program.
_COLLECTIVE = re.compile(r' = .*\b(all-|reduce-scatter|collective-)[^ ]*\(')
# More shards than processes, the last one short.
SETTINGS = dict(k=12, rows=32, shard_images=40)


def start(function, count, devices, *args, xla=''):
  """Starts processes that call `function(address, count, index, *args)`.

  With `xla` as further flags of XLA.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  module = function.__module__
  code = (
    f'import sys; import {module}; '
    f'sys.exit({module}.{function.__name__}(*sys.argv[1:]))'
  )
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': f'{devices}',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {xla}'.strip(),
  }
  if xla:
    # What is read from the cache is not dumped.
    environment['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  return [
    subprocess.Popen(
      [sys.executable, '-c', code, *map(str, (address, count, i, *args))],
      cwd=ROOT,
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def ends(running, timeout=240):
  """(exit code, stderr) of each."""
  try:
    errors = [process.communicate(timeout=timeout)[1] for process in running]
    return [(p.returncode, e) for p, e in zip(running, errors, strict=True)]
  finally:
    for process in running:
      process.kill()


def share(address, count, index, directory):
  processes.start(
    address, int(count), int(index), heartbeat=30, shutdown=60, connect=60
  )
  work(mesh.own(mesh.make()), directory, mesh.share())
  return processes.leave(0)


def work(devices, directory, share):
  rng, describer = np.random.default_rng(0), Describer(8, 60, 3)
  target, source = counts(rng, 9), counts(rng, 390)
  source[200:220] = source[10:30]
  stream = Stream(describer, source)
  shards = pathlib.Path(directory) / 'shards'
  found = search.nearest(
    Stream(describer, target),
    stream,
    mesh=devices,
    directory=shards,
    share=share,
    **SETTINGS,
  )
  index, count = share
  # Nobody read more than its shards.
  assert stream.read <= 40 * -(-10 // count)
  ids = np.arange(390).astype(str)
  name = pathlib.Path(directory) / f'{index}.parquet'
  tables.write(name, found.table, ids[:9], ids)
  search.clear(shards)
  for binning in describe.BINNINGS:
    found = edges(devices, binning)
    np.savez(
      name.with_name(f'{index}-{binning}.npz'),
      edges=found.edges_cb,
      lower=found.lower_c,
      upper=found.upper_c,
    )


def edges(devices, binning):
  """Of a bank that responds with the pixels, on seven images of noise."""
  size = 4
  rng = np.random.default_rng(1)
  files = [
    cv2.imencode('.png', rng.integers(0, 256, (size, size, 3), np.uint8))[1]
    for _ in range(7)
  ]
  read = []
  dataset = Dataset(
    name='set',
    classes=('any',),
    ids=np.arange(7).astype(str),
    labels=np.zeros(7, np.int32),
    sizes=np.ones(7, np.int64),
    read=lambda i: read.append(i) or files[i].tobytes(),
  )
  bank = describe.Bank(
    responses=lambda image_nhwc: [image_nhwc.astype(np.float32)],
    layer_c=np.zeros(3, np.int32),
    names=('red', 'green', 'blue'),
    resize=size,
    crop=size,
  )
  describer = describe.fit(
    bank, dataset, bins=8, binning=binning, mesh=devices, batch=8, threads=1
  )
  index, count = mesh.share()
  assert set(read) == set(range(index, 7, count))
  return describer


def test_processes_leave_the_bytes_of_one_and_the_search_tells_nothing(
  tmp_path,
):
  work(mesh.make(), tmp_path / 'one', (0, 1))
  directory, dump = tmp_path / 'many', tmp_path / 'dump'
  ended = ends(start(share, 2, 2, directory, xla=f'--xla_dump_to={dump}'))
  assert [code for code, _ in ended] == [0, 0], ended
  for kind in (
    '.parquet',
    *(f'-{binning}.npz' for binning in describe.BINNINGS),
  ):
    expected = (tmp_path / 'one' / f'0{kind}').read_bytes()
    for i in range(2):
      assert (directory / f'{i}{kind}').read_bytes() == expected
  assert not (directory / 'shards').exists()
  programs = [
    (path.name.split('.')[1], path.read_text())
    for path in dump.glob('*after_optimizations.txt')
  ]
  names = {name for name, _ in programs}
  telling = {name for name, text in programs if _COLLECTIVE.search(text)}
  # The bins' edges are counted by all devices of a process together.
  assert telling == {
    'jit_count_digits',
    'jit__extremes',
    'jit__count_cells',
    'jit__identity_fn',
  }
  assert names - telling > {
    'jit_bounds',
    'jit_candidates',
    'jit_jeffreys_pairs',
  }


def keep(address, count, index, directory):
  """Saves a state that is split over the processes, in a store."""
  store.register()
  processes.start(
    address, int(count), int(index), heartbeat=30, shutdown=60, connect=60
  )
  over = mesh.make()
  mine = np.arange(4.0, dtype=np.float32) + 4 * int(index)
  state = {'x': mesh.shard(mine, over)}
  for given in (2, None):
    with processes.together(), checkpoints.Checkpoints(directory) as saved:
      if given:
        saved.save(given, state, {'given': given})
      else:
        restored, meta = saved.restore(state)
  assert meta == {'given': 2}
  assert restored['x'].sharding == state['x'].sharding
  (one, other) = (s.data.tolist() for s in restored['x'].addressable_shards)
  assert one + other == mine.tolist()
  return processes.leave(0)


def test_processes_without_a_common_disk_keep_a_checkpoint_in_a_store(bucket):
  directory = 'gs://b/kept'
  ended = ends(start(keep, 2, 2, directory))
  assert [code for code, _ in ended] == [0, 0], ended
  # Another number of processes, here one of eight devices, goes on from it.
  state = {'x': mesh.replicate(np.zeros(8, np.float32), mesh.make())}
  with checkpoints.Checkpoints(directory) as saved:
    restored, _ = saved.restore(state)
  np.testing.assert_array_equal(restored['x'], np.arange(8))


def unlucky(address, count, index, event):
  """What ends one process, or all."""
  index = int(index)
  processes.start(
    address, int(count), index, heartbeat=10, shutdown=10, connect=60
  )

  def refuse():
    raise UserError(f'Refused by process {index}.')

  def work():
    assert processes.gathered(index) == [0, 1]
    assert processes.told(lambda: [index, 'told']) == [0, 'told']
    if event == 'all':
      processes.agree('the same', 'images')
      with pytest.raises(UserError, match='same images; process 1 has others'):
        processes.agree(index, 'images')
      processes.told(refuse)
    elif index:
      refuse() if event == 'one' else os.kill(os.getpid(), signal.SIGKILL)
    processes.meet()

  return processes.leave(guarded(work))


@pytest.mark.parametrize('event', ['all', 'one', 'death'])
def test_no_process_outlives_another_and_each_has_a_last_line(event):
  ended = ends(start(unlucky, 2, 1, event), timeout=120)
  (code, first), (other, second) = ended
  last, last_of_other = (x.splitlines()[-1] for x in (first, second))
  if event == 'all':
    assert (code, other) == (2, 2), ended
    assert last == last_of_other == 'sjft_jax: Refused by process 0.'
  else:
    assert code not in (0, 2)
    assert 'process 0 of 2 was ended' in last
    assert other == (2 if event == 'one' else -signal.SIGKILL)
    said = 'Refused by process 1' if event == 'one' else 'process 1 of 2 was'
    assert said in last_of_other


def begin():
  with processes.together():
    pass


@pytest.mark.parametrize(
  'nested',
  [
    lambda: processes.told(lambda: 1),
    lambda: processes.gathered(1),
    lambda: processes.agree(1, 'images'),
    processes.meet,
    begin,
  ],
)
def test_what_one_process_does_alone_tells_nothing(nested):
  """With one process, too, though only several would wait for each other."""
  with pytest.raises(RuntimeError, match='the others are not there'):
    processes.told(nested)
  # Nor is what comes after a failure taken for a part of it.
  nested()
  assert processes.told(lambda: 2) == 2


# --- The whole command --------------------------------------------------------


def settings(data):
  return {
    'target.train': str(data / 'train'),
    'target.test': str(data / 'test'),
    'source.main.dir': str(data / 'source'),
    'threads': 1,
    'processes.heartbeat': 30,
    'describe.resize': 16,
    'describe.crop': 16,
    'describe.bins': 8,
    'budget.initial': 3,
    'budget.maximum': 12,
    'model.width': 0.125,
    'model.stem': 'small',
    'pretrain.steps': 0,
    'train.resize': 10,
    'train.crop': 8,
    'train.steps': 6,
    'train.micro_batches': 2,
    'train.target_batch': 8,
    'train.source_batch': 8,
    'optim.learning_rate': 0.003,
    'rounds': 1,
    'evaluate.batch': 16,
    'max_bad_fraction': 0.05,
  }


def flags(data, workdir):
  return [
    f'--config={ROOT}/configs/folders.py',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in settings(data).items()),
  ]


def command(address, count, index, directory, stop_at, *given):
  """The one command, with a small trunk and a record of its batches.

  After update `stop_at` the last process is sent SIGTERM; 0: never.
  """
  record(directory, int(index), int(count))
  write = metrics.Writer.__call__

  def stop(self, step, values):
    write(self, step, values)
    if step == int(stop_at) and int(index) == int(count) - 1:
      os.kill(os.getpid(), signal.SIGTERM)

  metrics.Writer.__call__ = stop
  together = scenes.together(address, count, index)
  return main.run(['main', *together, *given])


def record(directory, index, count):
  """Has the images of every update written to a file."""
  joint = pipelines.joint

  def recorded(*args, first_step, **kwargs):
    batches = joint(*args, first_step=first_step, **kwargs)
    for step, batch in enumerate(batches, first_step):
      drawn = [batch[f'{half}_index'].tolist() for half in ('target', 'source')]
      name = pathlib.Path(directory) / f'batch-{step}-{index}-{count}.json'
      name.write_text(json.dumps(drawn))
      yield batch

  pipelines.joint = recorded
  small.bank()
  # So that some of the small network's parameters can be sharded.
  mesh._SPLIT_LEAST = 64
  tiny = resnet.ResNet((1,), 1 / 8, 'small', momentum=0.9, axis_name=mesh.AXIS)
  trunks.TRUNKS = trunks.TRUNKS | {'resnet26': lambda c: tiny}


def drawn(directory, step, count):
  """The images of an update, of all processes together, [half, m, b]."""
  return np.concatenate(
    [
      json.loads((directory / f'batch-{step}-{i}-{count}.json').read_text())
      for i in range(count)
    ],
    axis=2,
  )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  return digits.write(root, train=(0, 40), test=(40, 80), source=(80, 160))


@pytest.fixture(scope='module')
def reference(data, tmp_path_factory):
  """The directory of a run by one process, with four devices."""
  directory = tmp_path_factory.mktemp('one')
  given = flags(data, directory / 'run')
  ((code, said),) = ends(start(command, 1, 4, directory, 0, *given))
  assert code == 0, said
  return directory


def assert_same(one, other):
  name = 'selection/neighbours.parquet'
  assert (one / name).read_bytes() == (other / name).read_bytes()
  lines = [(run / 'metrics.jsonl').read_text() for run in (one, other)]
  lines = [[json.loads(x) for x in text.splitlines()] for text in lines]
  for a, b in zip(*lines, strict=True):
    assert a == pytest.approx(b, rel=2e-5, abs=1e-6)
  a, b = (np.load(run / 'rounds/0/posteriors.npz') for run in (one, other))
  for kind in ('train_probability', 'test_probability'):
    np.testing.assert_allclose(a[kind], b[kind], rtol=0, atol=1e-5)


def test_sigterm_saves_and_the_same_command_goes_on(data, reference, tmp_path):
  given = flags(data, tmp_path / 'run')
  ((code, said),) = ends(start(command, 1, 4, tmp_path, 2, *given))
  assert code == 0, said
  # Which is agreed on while the next updates run.
  assert re.search('SIGTERM after update [345], which is saved', said), said
  ((code, said),) = ends(start(command, 1, 4, tmp_path, 0, *given))
  assert code == 0, said
  assert not (tmp_path / 'batch-6-0-1.json').exists()
  for name in ('selection/neighbours.parquet', 'rounds/0/posteriors.npz'):
    one, other = (d / 'run' / name for d in (reference, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def take_over(address, count, index, run):
  """Takes a search over that only the first process knows of, which is late."""
  processes.start(
    address, int(count), int(index), heartbeat=30, shutdown=10, connect=60
  )
  small.bank()
  had = retrieval.reopen(run, mesh.own(mesh.make()))
  if index == '0':
    time.sleep(3)
  found = retrieval.find(
    had.settings,
    had.target,
    had.source,
    pathlib.Path(run).with_name('taken'),
    mesh=mesh.make(),
    donors=[] if int(index) else [pathlib.Path(run) / 'selection'],
  )
  np.testing.assert_array_equal(found.index_qk, had.table.index_qk)
  return processes.leave(0)


def test_a_search_taken_over_leaves_no_process_waiting(reference):
  ended = ends(start(take_over, 2, 1, reference / 'run'), timeout=60)
  assert [code for code, _ in ended] == [0, 0], ended


def test_two_processes_of_two_devices_train_as_one_of_four(
  data, reference, tmp_path
):
  """With their parameters sharded over all devices, at that."""
  workdir = tmp_path / 'run'
  given = [*flags(data, workdir), '--config.train.sharded=true']
  ended = ends(start(command, 2, 2, tmp_path, 0, *given))
  assert [code for code, _ in ended] == [0, 0], ended
  assert_same(reference / 'run', workdir)
  assert not [p for p in workdir.rglob('*') if p.name.startswith('.')]


def test_four_processes_stop_together_and_two_go_on(data, reference, tmp_path):
  workdir = tmp_path / 'run'
  given = flags(data, workdir)
  ended = ends(start(command, 4, 1, tmp_path, 2, *given))
  assert [code for code, _ in ended] == [0] * 4, ended
  said = {errors.splitlines()[-1] for _, errors in ended}
  assert len(said) == 1
  (line,) = said
  assert 'Stopped by SIGTERM after update' in line
  stopped = int(line.split('update ')[1].split(',')[0])
  assert 2 < stopped < 6
  ended = ends(start(command, 2, 2, tmp_path, 0, *given))
  assert [code for code, _ in ended] == [0, 0], ended
  for step in range(6):
    expected = drawn(reference, step, 1)
    for count in [4] * (step < stopped) + [2] * (step >= stopped):
      np.testing.assert_array_equal(drawn(tmp_path, step, count), expected)
  # No batch was made twice.
  assert not list(tmp_path.glob(f'batch-{stopped - 1}-*-2.json'))
  assert_same(reference / 'run', workdir)


def test_a_step_of_a_batch_job_is_told_of_its_processors():
  script = (ROOT / 'launch' / 'slurm.sh').read_text()
  (step,) = re.findall(r'^srun (?:.*\\\n)*', script, re.MULTILINE)
  assert '--cpus-per-task="${SLURM_CPUS_PER_TASK' in step
