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
import math
import os
import re
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
# What the first process gives the others to leave before it.
_PATIENCE = 5
# To look what is reached, on a file system that may hang.
_SAYING = 2
_numbers = itertools.count()
_STOP = 'stop'
# Parts of the time to end in after SIGTERM. The first process serves the
# others' store and is their heartbeats' ear: it goes last, for its end ends
# them, and not in order.
_FIRST_LEAVES, _OTHERS_LEAVE = 7 / 8, 3 / 4
# How errors begin where another process is gone: a closed connection of Gloo
# or NCCL, which passes through NumPy as a ValueError, or a word of the
# coordination service.
_GONE = re.compile(
  r'(ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE): '
  r'|(FAILED_PRECONDITION|INTERNAL|UNKNOWN): .*'
  r'(Gloo|NCCL|[Bb]arrier|[Cc]oordination|[Hh]eartbeat|[Pp]eer\b)',
  re.DOTALL,
)
_blocks = 0
_farewell = None
_joined = False
_leaving = None
_telling = False


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

  What is not given comes from the environment: JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, or Slurm, Kubernetes, Open MPI or a
  TPU's metadata, as jax.distributed finds them.

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
  address = address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address and not re.fullmatch('.+:[0-9]{1,5}', address):
    raise UserError(f'The coordinator must be HOST:PORT, not {address!r}.')
  count = _number(count, 'JAX_NUM_PROCESSES')
  index = _number(index, 'JAX_PROCESS_ID')
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


def _number(given, name):
  """What is given, or else the number in the environment, or None."""
  text = os.environ.get(name)
  if given is not None or not text:
    return given
  if not text.isdecimal():
    raise UserError(f'{name} must be a number, not {text!r}.')
  return int(text)


def first() -> bool:
  """Whether this is the process that decides, writes and talks."""
  return jax.process_index() == 0


def count() -> int:
  """How many processes work together."""
  return jax.process_count()


def told(work: Callable[[], Any]) -> Any:
  """What `work` returns in the first process, which alone does it.

  Args:
    work: returns what JSON can hold. Nothing is told, gathered or agreed on in
      it, and no block is begun together: the others are not there.

  Returns:
    The same in every process, as JSON reads it back.

  Raises:
    RuntimeError: for what `work` may not do, also where there are no others.
    UserError: in every process, what `work` raised.
  """
  key = _next_key('told')
  if jax.process_count() == 1:
    with _alone():
      return work()
  store = distributed.global_state.client
  if first():
    try:
      with _alone():
        answer = {'value': work()}
    except UserError as error:
      answer = {'error': str(error)}
    store.key_value_set(key, json.dumps(answer))
  answer = json.loads(_get(store, key))
  if 'error' in answer:
    raise UserError(answer['error'])
  return answer['value']


@contextlib.contextmanager
def _alone():
  """A block that the first process does alone."""
  global _telling
  _telling = True
  try:
    yield
  finally:
    _telling = False


def _next_key(kind) -> str:
  """The key of what comes next, the same in every process."""
  # One number more in the first process alone, and all would wait for ever,
  # each for another key.
  if _telling:
    raise RuntimeError(
      'What the first process does alone may not tell, gather or agree on '
      'anything: the others are not there. Do that before or after it.'
    )
  return f'{kind}/{next(_numbers)}'


def gathered(value: Any) -> list:
  """What every process gives, in their order, in every process.

  Args:
    value: what JSON can hold.

  Raises:
    RuntimeError: in the `work` of `told`.
  """
  key = _next_key('gathered')
  if jax.process_count() == 1:
    return [value]
  store = distributed.global_state.client
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

  SIGTERM is heard while one waits for the others, but not in the block, nor
  where something is told in it: who left it would leave the others waiting in
  a collective, and a checkpoint without its part.
  """
  global _blocks
  with preemption.deferred():
    _hear()
    meet()
    _blocks += 1
    try:
      yield
    finally:
      _blocks -= 1


def _hear():
  if not _blocks:
    preemption.check()


def _get(store, key, seconds=None):
  """The value of a key, once there is one; after `seconds`, None."""
  until = math.inf if seconds is None else time.monotonic() + seconds
  while time.monotonic() < until:
    try:
      return store.blocking_key_value_get(key, _POLL_MS)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise
      if seconds is None:
        _hear()
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


def stop(
  free: bool, *, seconds: float, heartbeat: float, reached: Callable[[], str]
) -> None:
  """After SIGTERM: ends this process in time, with code 0.

  Called in a thread, because the main one may be deaf for minutes: while it
  compiles, joins the others or waits for them in a collective. What is cut off
  is what is not yet saved: files are whole or absent, and so are checkpoints,
  which count once every process has written its part.

  Args:
    free: the main thread may be left at once. If not, it has most of the time
      to end by itself.
    seconds: until all processes are to have ended.
    heartbeat: seconds after which the first process would miss those that have
      left, and be aborted.
    reached: returns the words for what the next start goes on from.
  """
  state = distributed.global_state

  def say():
    found = ['what is saved']

    def look():
      with contextlib.suppress(OSError):
        found.append(reached())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_SAYING)
    # Not by sys.stderr, which the main thread may hold; below a bar's line.
    line = f'\nsjft_jax: {preemption.Preemption(reached=found[-1])}\n'
    os.write(2, line.encode())

  def end():
    if _leaving is None:
      say()
    _end(_leaving or 0)

  part = _OTHERS_LEAVE * seconds
  if not state.process_id:
    part = min(_FIRST_LEAVES * seconds, part + heartbeat / 2)
  timer = threading.Timer(part, end)
  timer.daemon = True
  timer.start()
  if state.client and not _joined:
    time.sleep(1)  # It is just now joining the others, or waits for them.
  # There is no client any more where this process has just left the others.
  if _joined and (store := state.client):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(_STOP, '', allow_overwrite=True)
  if free:
    preemption.claim()
    say()
    leave(0)
    _end(0)


def lost(error: BaseException) -> bool:
  """Whether an error is what one meets whose others are gone.

  Not where there are no others, nor one that this process has by itself, as of
  too little memory.
  """
  while _joined and error is not None:
    if isinstance(error, RuntimeError | ValueError) and _GONE.match(str(error)):
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
      until = time.monotonic() + _PATIENCE
      for i in () if state.process_id else range(1, state.num_processes):
        _get(state.client, f'left/{i}', until - time.monotonic())
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
