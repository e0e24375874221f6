"""Processes that run one command together: how they begin, agree and end.

What depends on files is decided by the first process and told to all; the
others never look at the disk to choose their way. Nothing here waits in a
collective, so that hours of waiting are neither a time-out nor deaf to
signals. A process that dies ends all others: the distributed runtime of JAX
notices by its missing heartbeats.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
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
_farewell = None


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
  progress.shown = first()
  _watch()


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
      preemption.check()
  return None


def _watch():
  """Has a shell say the last line where this process cannot.

  The runtime aborts a process whose peer is dead: no Python runs after that.
  """
  global _farewell
  index, count = jax.process_index(), jax.process_count()
  line = (
    f'sjft_jax: process {index} of {count} was ended: it, or another that it '
    'needs, died. Give the same command again; it goes on from what is saved.'
  )
  _farewell = subprocess.Popen(
    # Signals meant for Python must not end it first.
    ['/bin/sh', '-c', 'trap \'\' INT TERM; read -r x || echo "$0" >&2', line],
    stdin=subprocess.PIPE,
  )


def leave(code: int) -> int:
  """Ends the common work; returns `code`, the exit code.

  Without an error all wait for each other. A process with an error does not
  wait for those who cannot know of it, but the first gives them time to leave
  by themselves, since its end ends them.
  """
  if not distributed.global_state.client or _farewell is None:
    return code
  if code == 0:
    jax.distributed.shutdown()
    _say_farewell()
    return code
  store, count = distributed.global_state.client, jax.process_count()
  store.key_value_set(f'left/{jax.process_index()}', '', allow_overwrite=True)
  for i in range(1, count) if first() else ():
    _get(store, f'left/{i}', 5)
  _say_farewell()
  sys.stdout.flush()
  sys.stderr.flush()
  # Leaving in order would wait for the others, and then abort.
  os._exit(code)


def _say_farewell():
  _farewell.communicate(b'\n')
