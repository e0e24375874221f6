"""What processes that are sent SIGTERM may be doing; in place of a run."""

import os
import pathlib
import sys
import time
import types

import jax
import numpy as np
from jax.experimental import multihost_utils

from sjft_jax import main, preemption, processes

ROOT = pathlib.Path(__file__).parent.parent
LONG = 300


def deaf(index):
  """The first is at work in a block, the other in a native call."""
  with processes.together():
    _mark(index)
    _rest() if index == 0 else _exchange()


def bereft(index):
  """The first waits in a collective for one that will leave."""
  with processes.together():
    _mark(index)
    _exchange() if index == 0 else _rest()


def waiting(index):
  """The first works alone, and the other waits for what it will be told."""

  def work():
    _mark(0)
    _rest()

  if index:
    _mark(index)
  processes.told(work)


def faulty(index):
  """A fault of its own after SIGTERM."""
  with processes.together():
    _mark(index)
    while not preemption.asked():
      time.sleep(0.01)
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')


def _exchange():
  multihost_utils.process_allgather(np.zeros(3))


def _rest():
  time.sleep(LONG)


def _mark(index):
  pathlib.Path(os.environ['MARKS'], f'{index}').touch()


def scene(address, count, index, directory, name, shutdown):
  """The one command, with a scene in place of its run."""
  os.environ['MARKS'], play = directory, globals()[name]
  # Nor is what a run needs imported, which would take several times as long.
  sys.modules['sjft_jax.experiment'] = types.SimpleNamespace(
    run=lambda c, workdir, mesh: play(int(index))
  )
  given = (
    f'--config={ROOT}/configs/folders.py',
    f'--workdir={directory}/run',
    f'--config.processes.shutdown={shutdown}',
  )
  # ml_collections looks for the settings there, whatever it is given.
  sys.argv = ['main', *together(address, count, index), *given]
  return main.run(sys.argv)


def together(address, count, index):
  """The flags of one of several processes."""
  if int(count) == 1:
    return ()
  return (
    '--multihost',
    f'--coordinator={address}',
    f'--processes={count}',
    f'--process={index}',
  )
