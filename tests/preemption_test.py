"""SIGTERM to one process ends all in time, whatever they are doing."""

import os
import pathlib
import signal
import time

import jax
import pytest

from sjft_jax import (
  certificate,
  describe,
  guard,
  main,
  preemption,
  processes,
  search,
)
from tests import digits, processes_test, scenes, small


@pytest.fixture
def heard(monkeypatch):
  """What `watch` calls its `leave` with; SIGTERM is ours meanwhile."""
  monkeypatch.setattr(preemption, '_asked', False)
  handler, heard = signal.getsignal(signal.SIGTERM), []
  preemption.listen()
  yield heard
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGTERM, handler)


def until(true, seconds=10):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_sigterm_waits_for_the_end_of_a_block(heard):
  steps = []

  def outer():
    with preemption.deferred():
      with preemption.deferred():
        preemption.watch(lambda: False, heard.append)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: heard)
        with pytest.raises(preemption.Preemption):
          preemption.check()
      # The inner block is over, the outer one is not.
      steps.append('outer')

  with pytest.raises(preemption.Preemption):
    outer()
  assert heard == [False]
  assert steps == ['outer']
  with pytest.raises(preemption.Preemption), preemption.deferred():
    steps.append('another block')
  assert steps == ['outer']


def test_what_another_was_sent_leaves_the_main_thread_at_once(heard):
  preemption.watch(lambda: True, heard.append)
  until(lambda: heard)
  assert heard == [True]
  assert preemption.asked()


class Late:
  """A store that has the value at the second look."""

  def __init__(self):
    self.looks = 0

  def blocking_key_value_get(self, key, ms):
    self.looks += 1
    if self.looks == 1:
      raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: not yet')
    return 'value'


def test_what_is_told_in_a_block_is_waited_for_in_spite_of_sigterm(monkeypatch):
  """Or a process would leave its part out of the checkpoint that all save."""
  monkeypatch.setattr(preemption, '_asked', False)
  got = []

  def save():
    with processes.together():
      monkeypatch.setattr(preemption, '_asked', True)
      got.append(processes._get(Late(), 'key'))

  with pytest.raises(preemption.Preemption):
    save()
  assert got == ['value']
  with pytest.raises(preemption.Preemption):
    processes._get(Late(), 'key')


def test_the_first_process_waits_for_all_others_as_long_as_for_one():
  class Never:
    def blocking_key_value_get(self, key, ms):
      time.sleep(ms / 1000)
      raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: never')

  start = time.monotonic()
  assert processes._get(Never(), 'key', 0.7) is None
  assert 0.7 <= time.monotonic() - start < 2
  assert processes._get(Never(), 'key', -1) is None


@pytest.mark.parametrize(
  ('error', 'gone'),
  [
    (ValueError('UNKNOWN: Gloo AllGather failed: Connection closed'), True),
    (jax.errors.JaxRuntimeError('UNAVAILABLE: Failed to send RPC'), True),
    (jax.errors.JaxRuntimeError('INTERNAL: Barrier failed because'), True),
    (jax.errors.JaxRuntimeError('INTERNAL: CUDA error: misaligned'), False),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'), False),
    (ValueError('all-reduce of Gloo'), False),
  ],
)
def test_only_what_the_others_caused_counts_as_their_end(
  error, gone, monkeypatch
):
  behind = KeyError('state')
  behind.__cause__ = error
  for alone in (True, False):
    monkeypatch.setattr(processes, '_joined', not alone)
    assert processes.lost(error) == (gone and not alone)
    assert processes.lost(behind) == (gone and not alone)


# --- Real processes -----------------------------------------------------------


def stopped(running, marks):
  """(seconds, exit code, stderr) of each after SIGTERM to the last."""
  seconds, said = {}, []

  def ended():
    for i, process in enumerate(running):
      if i not in seconds and process.poll() is not None:
        seconds[i] = time.monotonic() - begun
    return len(seconds) == len(running)

  try:
    begun = time.monotonic()
    until(lambda: all(m.exists() for m in marks) or ended(), 240)
    begun = time.monotonic()
    running[-1].send_signal(signal.SIGTERM)
    until(ended, 60)
  finally:
    for process in running:
      process.kill()
      said.append(process.communicate()[1])
  assert all(m.exists() for m in marks), said
  return [
    (seconds[i], process.returncode, said[i])
    for i, process in enumerate(running)
  ]


@pytest.mark.parametrize('name', ['deaf', 'bereft'])
def test_who_cannot_stop_is_ended_in_time_and_the_first_goes_last(
  name, tmp_path
):
  (tmp_path / 'run/selection').mkdir(parents=True)
  (tmp_path / 'run/selection/edges.npz').touch()
  shutdown = 8
  running = processes_test.start(scenes.scene, 2, 1, tmp_path, name, shutdown)
  ended = stopped(running, [tmp_path / '0', tmp_path / '1'])
  (first, code, said), (second, other, said_too) = ended
  assert (code, other) == (0, 0), ended
  # If the first went before, the other was aborted. The rest is for a machine
  # so busy that both are late.
  assert 6 <= second < first + 0.5, ended
  assert 6.9 <= first < shutdown + 10, ended
  line = 'sjft_jax: Stopped by SIGTERM; the same command goes on from'
  assert said_too.splitlines()[-1] == f'{line} the edges.'
  if name == 'deaf':
    assert said.splitlines()[-1] == f'{line} the edges.'
  else:
    # On such a machine its time may be over before its exchange has failed.
    lines = said.splitlines()
    if lines[-1] != f'{line} the edges.':
      assert lines[-1] == f'{line} here.'
      assert lines[-2].startswith('The others had left: UNKNOWN: Gloo'), said
    assert 'Traceback' not in said


def assert_line(said, reached, at_work):
  """Who waits, not works, may also leave by itself, from "here"."""
  places = (reached,) if at_work else (reached, 'here')
  ends = tuple(f'the same command goes on from {place}.' for place in places)
  assert said.splitlines()[-1].endswith(ends), said


def test_who_waits_passes_it_on_and_all_leave_at_once(tmp_path):
  running = processes_test.start(scenes.scene, 2, 1, tmp_path, 'waiting', 60)
  ended = stopped(running, [tmp_path / '0', tmp_path / '1'])
  for i, (seconds, code, said) in enumerate(ended):
    assert code == 0, ended
    assert seconds < 20, ended
    assert_line(said, 'the beginning', at_work=i == 0)


def test_a_fault_of_its_own_is_none_of_sigterm(tmp_path):
  running = processes_test.start(scenes.scene, 1, 1, tmp_path, 'faulty', 60)
  ((_, code, said),) = stopped(running, [tmp_path / '0'])
  assert code == 1
  assert 'RESOURCE_EXHAUSTED: Out of memory' in said.splitlines()[-1]
  assert 'SIGTERM' not in said


# Stage -> what is held up, in which process, and what is left then.
STAGES = {
  'guard': (guard, '_check', 0, 'the beginning'),
  'describe': (describe, 'fit', 0, 'the guard'),
  'search': (search._ShardSearch, 'search', 0, 'the edges'),
}


def staged(address, count, index, directory, stage, *given):
  """The one command, held up in a stage."""
  small.bank()
  if stage in STAGES:
    where, name, held, _ = STAGES[stage]

    def hold(*args, **kwargs):
      pathlib.Path(directory, stage).touch()
      time.sleep(scenes.LONG)

    if held == int(index):
      setattr(where, name, hold)
  return main.run(['main', *scenes.together(address, count, index), *given])


def test_every_stage_ends_in_all_processes_and_goes_on(tmp_path):
  data = digits.write(
    tmp_path / 'data', train=(0, 20), test=(20, 40), source=(40, 80)
  )
  run = tmp_path / 'run'
  given = [*processes_test.flags(data, run), '--config.rounds=0']
  for stage, (_, _, held, reached) in STAGES.items():
    running = processes_test.start(staged, 2, 1, tmp_path, stage, *given)
    ended = stopped(running, [tmp_path / stage])
    for i, (seconds, code, said) in enumerate(ended):
      assert code == 0, (stage, ended)
      assert seconds < 30, (stage, ended)
      assert_line(said, reached, at_work=i == held)
  kept = (run / 'selection/edges.npz').stat().st_mtime_ns
  ended = processes_test.ends(
    processes_test.start(staged, 2, 1, tmp_path, '', *given)
  )
  assert [code for code, _ in ended] == [0, 0], ended
  assert (run / 'selection/edges.npz').stat().st_mtime_ns == kept
  found = certificate.read(run / 'selection')
  assert found['source_images_seen'] == found['source_images']
