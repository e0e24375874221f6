"""Processes that run one command together: how they begin, agree and end.

What depends on files is decided by the first process and told to all; the
others never look at the disk to choose their way. Nothing here waits in a
collective, so that hours of waiting are neither a time-out nor deaf to
signals. A process that dies ends all others: the distributed runtime of JAX
notices by its missing heartbeats. SIGTERM sent to one is meant for all, and
all have ended in time, whatever they were doing.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# JAX offers no public name for the key-value store of its coordination
# service; Orbax takes this one, too.
from jax._src import distributed

from sjft_jax import preemption, progress
from sjft_jax.errors import UserError

# A look at the store; signals are heard in between.
_POLL_MS = 500
_numbers = itertools.count()
_STOP = 'stop'
# Parts of the time to end in after SIGTERM. The first process serves the
# others' store and is their heartbeats' ear: it goes last, for its end ends
# them, and not in order.
_FIRST_LEAVES, _OTHERS_LEAVE = 7 / 8, 3 / 4
_farewell = None
_joined = False
_leaving = None


def start(
  address: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  heartbeat: int,
  shutdown: int,
  connect: int,
) -> None:
  """Joins the processes of this command; the first to touch a device.

  What is not given comes from the environment: JAX_COORDINATOR_ADDRESS, Slurm,
  Kubernetes, Open MPI or a TPU's metadata, as jax.distributed finds them.

  Args:
    address: HOST:PORT of the first process.
    count: processes.
    index: of this one, from 0.
    heartbeat: seconds without a sign of life until a process counts as dead.
    shutdown: seconds that a process that is done waits for the others.
    connect: seconds to wait for the others at the start.

  Raises:
    UserError: if they cannot be found or do not come.
  """
  global _joined
  _watch()
  _have_said(
    f'Not all processes came within {connect} s (processes.connect): one is '
    'missing, or died at the start. Give each the same command again; they go '
    'on from what is saved.'
  )
  # It would take SIGTERM away from Python.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      address,
      count,
      index,
      initialization_timeout=connect,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=shutdown,
    )
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      f'The processes could not be joined: {error} Give --coordinator=HOST:PORT'
      ' --processes=N --process=I, or start under Slurm, Kubernetes or on TPUs.'
    ) from error
  _joined = True
  state = distributed.global_state
  _have_said(
    f'process {state.process_id} of {state.num_processes} was ended: it, or '
    'another that it needs, died. Give the same command again; it goes on from '
    'what is saved.'
  )
  progress.shown = first()


def first() -> bool:
  """Whether this is the process that decides, writes and talks."""
  return jax.process_index() == 0


def count() -> int:
  """How many processes work together."""
  return jax.process_count()


def told(work: Callable[[], Any]) -> Any:
  """What `work` returns in the first process, which alone does it.

  Args:
    work: returns what JSON can hold.

  Returns:
    The same in every process, as JSON reads it back.

  Raises:
    UserError: in every process, what `work` raised.
  """
  if jax.process_count() == 1:
    return work()
  store, key = distributed.global_state.client, f'told/{next(_numbers)}'
  if first():
    try:
      answer = {'value': work()}
    except UserError as error:
      answer = {'error': str(error)}
    store.key_value_set(key, json.dumps(answer))
  answer = json.loads(_get(store, key))
  if 'error' in answer:
    raise UserError(answer['error'])
  return answer['value']


def gathered(value: Any) -> list:
  """What every process gives, in their order, in every process.

  Args:
    value: what JSON can hold.
  """
  if jax.process_count() == 1:
    return [value]
  store, key = distributed.global_state.client, f'gathered/{next(_numbers)}'
  store.key_value_set(f'{key}/{jax.process_index()}', json.dumps(value))
  return [
    json.loads(_get(store, f'{key}/{i}')) for i in range(jax.process_count())
  ]


def agree(value: Any, what: str) -> None:
  """Refuses to go on where processes do not have the same.

  Args:
    value: what JSON can hold.
    what: the words for it.

  Raises:
    UserError: in every process.
  """
  values = gathered(value)
  other = next((i for i, v in enumerate(values) if v != values[0]), None)
  if other is not None:
    raise UserError(
      f'All processes need the same {what}; process {other} has others than '
      'process 0. Give all the same command, on a file system they share.'
    )


def meet() -> None:
  """Returns once every process has come here."""
  gathered(None)


@contextlib.contextmanager
def together():
  """A block that all processes begin at the same time.

  SIGTERM is heard while one waits for the others, but not in the block: who
  left it would leave the others waiting in a collective.
  """
  with preemption.deferred():
    preemption.check()
    meet()
    yield


def _get(store, key, seconds=None):
  """The value of a key, once there is one; after `seconds`, None."""
  for _ in itertools.count() if seconds is None else range(2 * seconds):
    try:
      return store.blocking_key_value_get(key, _POLL_MS)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise
      if seconds is None:
        preemption.check()
  return None


def sent() -> bool:
  """Whether a process that works with this one was sent SIGTERM."""
  store = distributed.global_state.client
  if not _joined or store is None:
    return False
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    store.key_value_try_get(_STOP)
    return True
  return False


def stop(free: bool, *, seconds: float, reached: Callable[[], str]) -> None:
  """After SIGTERM: ends this process in time, with code 0.

  Called in a thread, because the main one may be deaf for minutes: while it
  compiles, joins the others or waits for them in a collective. What is cut off
  is what is not yet saved: files are whole or absent, and so are checkpoints,
  which count once every process has written its part.

  Args:
    free: the main thread may be left at once. If not, it has most of the time
      to end by itself.
    seconds: until all processes are to have ended.
    reached: returns the words for what the next start goes on from.
  """
  state = distributed.global_state
  if state.client and not _joined:
    time.sleep(1)  # It is just now joining the others, or waits for them.
  if _joined:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      state.client.key_value_set(_STOP, '', allow_overwrite=True)

  def say():
    # Not by sys.stderr, which the main thread may hold; below a bar's line.
    line = f'\nsjft_jax: {preemption.Preemption(reached=reached())}\n'
    os.write(2, line.encode())

  def end():
    if _leaving is None:
      say()
    _end(_leaving or 0)

  part = _OTHERS_LEAVE if state.process_id else _FIRST_LEAVES
  timer = threading.Timer(part * seconds, end)
  timer.daemon = True
  timer.start()
  if free:
    preemption.claim()
    say()
    leave(0)
    _end(0)


def lost(error: BaseException) -> bool:
  """Whether an error is what one meets whose others are gone."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      return True
    error = error.__cause__ or error.__context__
  return False


def _watch():
  """Has a shell say the last line where this process cannot.

  The runtime aborts a process whose peer is dead, or does not come: no Python
  runs after that. The shell says the last line that it was told, if its input
  ends without an empty one.
  """
  global _farewell
  script = """
    trap '' INT TERM  # meant for Python; must not end it first
    while read -r line; do [ "$line" ] || exit 0; last=$line; done
    echo "$last" >&2
  """
  _farewell = subprocess.Popen(['/bin/sh', '-c', script], stdin=subprocess.PIPE)


def _have_said(message):
  with contextlib.suppress(OSError):
    _farewell.stdin.write(f'sjft_jax: {message}\n'.encode())
    _farewell.stdin.flush()


def leave(code: int) -> int:
  """Ends the common work and this process; returns where there is none.

  Without an error all wait for each other. A process with an error does not
  wait for those who cannot know of it, but the first gives them time to leave
  by themselves, since its end ends them.

  Args:
    code: the exit code; 1 where no line has said why.
  """
  global _leaving
  _leaving = code
  if _farewell is None:
    return code
  state = distributed.global_state
  if _joined and code == 0:
    try:
      jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
      # Those who had to leave did not wait.
      if not preemption.asked():
        print(error, file=sys.stderr)
        code = 1
  elif _joined:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      left = f'left/{state.process_id}'
      state.client.key_value_set(left, '', allow_overwrite=True)
      for i in () if state.process_id else range(1, state.num_processes):
        _get(state.client, f'left/{i}', 5)
  _end(code)


def _end(code):
  """Ends the process, without what would wait for the others, then abort."""
  for stream in sys.stdout, sys.stderr:
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  if _farewell:
    if code != 1:
      with contextlib.suppress(OSError):
        _farewell.stdin.write(b'\n')
    with contextlib.suppress(OSError):
      _farewell.stdin.close()
    _farewell.wait()
  os._exit(code)
