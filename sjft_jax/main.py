"""The one command: python -m sjft_jax.main --config=FILE --workdir=DIR.

The same command again goes on where it was stopped. Settings of the config
are changed by flags: --config.train.steps=400; configs/default.py lists them,
and tuples need quotes. With --multihost the command is given once for each of
several processes, which work together.
"""

import ast
import contextlib
import functools
import os
import sys
import traceback

from absl import app, flags
from ml_collections import config_flags

from sjft_jax import command, paths, preemption
from sjft_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The settings: a file of configs/.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run; the same one again resumes.'
)
_MULTIHOST = flags.DEFINE_bool(
  'multihost',
  False,
  'Several processes, each given this command, work on one run.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of process 0 for --multihost; default: JAX_COORDINATOR_ADDRESS, '
  'or as Slurm, Kubernetes or the TPU has it.',
)
_PROCESSES = flags.DEFINE_integer(
  'processes',
  None,
  'How many processes; default: JAX_NUM_PROCESSES, or as for --coordinator.',
)
_PROCESS = flags.DEFINE_integer(
  'process',
  None,
  'Which this is, from 0; default: JAX_PROCESS_ID, or as for --coordinator.',
)


def _first_line(error):
  return str(error).partition('\n')[0][:200]


def parse(argv):
  """Reads the flags: (config, workdir).

  Raises:
    UserError: for an unknown flag or setting, or one of the wrong type.
  """
  listed = 'Settings and their types are listed in configs/default.py.'
  try:
    ' '.join(argv).encode()
  except UnicodeEncodeError as error:
    what = error.object[max(0, error.start - 20) : error.end]
    raise UserError(
      'The names of files and folders on the command line must be UTF-8; '
      f'{what!r} is not. Rename it, or make a link to it.'
    ) from error
  try:
    rest = flags.FLAGS(argv)[1:]
    if rest:
      raise UserError(f'Only flags are understood, not {" ".join(rest)!r}.')
    for flag in (_CONFIG, _WORKDIR):
      if flag.value is None:
        raise UserError(
          f'--{flag.name} is needed: python -m sjft_jax.main '
          '--config=configs/folders.py --workdir=runs/mine'
        )
    for flag in (_COORDINATOR, _PROCESSES, _PROCESS):
      if flag.value is not None and not _MULTIHOST.value:
        raise UserError(f'--{flag.name} is for --multihost; give that, too.')
  except (AttributeError, KeyError) as error:
    reason = str(error.args[0])
    # ml_collections passes the repr of its own message on.
    with contextlib.suppress(SyntaxError, ValueError):
      reason = str(ast.literal_eval(reason))
    reason = '. '.join(filter(None, reason.splitlines()))
    stop = '' if reason.endswith(('.', '?')) else '.'
    raise UserError(f'No such setting: {reason}{stop} {listed}') from error
  except (flags.Error, TypeError, ValueError) as error:
    reason = str(error).strip()
    # Of what a config raises, ml_collections makes the whole traceback a text.
    if 'Traceback' in reason:
      reason = reason.splitlines()[-1].partition(': ')[2]
    raise UserError(f'{reason.rstrip(".")}. {listed}') from error
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise UserError(
      f'--config must name a Python file: {reason.rstrip(".")}. Go to the root '
      'of the project, or correct the name.'
    ) from error
  except ModuleNotFoundError as error:
    raise UserError(
      f'{error}. The configs are read from the folder that holds them: go to '
      'the root of the project and give the command there.'
    ) from error
  # What follows a colon is an argument of its get_config.
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  file = name.partition(':')[0]
  if not os.path.isfile(file):
    raise UserError(f'--config must name a Python file; there is no {file}.')
  return _CONFIG.value, _WORKDIR.value


def _work(argv, accept):
  c, workdir = parse(argv)
  workdir = paths.path(workdir)
  accept(c)
  # Before they are used, which is before all other settings are checked.
  for name, seconds in c.processes.items():
    if seconds < 1:
      raise UserError(f'processes.{name} must be at least 1 s, not {seconds}.')
  from sjft_jax import processes, workdirs

  # Before the processes join, which is a native call already.
  stop = functools.partial(
    processes.stop,
    seconds=c.processes.shutdown,
    heartbeat=c.processes.heartbeat,
    reached=functools.partial(workdirs.reached, workdir),
  )
  preemption.watch(processes.sent, stop)
  if _MULTIHOST.value:
    processes.start(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, **c.processes
    )
    if not processes.first():
      # One of them talks; errors are told by each.
      sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115
  # The devices are first asked for here, after every check that needs none.
  from sjft_jax import experiment, mesh

  experiment.run(c, workdir, mesh.make())


def run(argv, accept=lambda c: None) -> int:
  """The command; returns its exit code.

  Args:
    argv: the command line.
    accept: raises a UserError for settings that this command does not take.
  """
  code, stopped, fault = 1, None, None
  preemption.listen()
  try:
    code = command.guarded(_work, argv, accept, interrupted=command.GOES_ON)
  except preemption.Preemption as stop:
    code, stopped = 0, stop
  except Exception as error:
    from sjft_jax import processes

    fault = error
    # What fails because the others had to leave is no fault.
    if preemption.asked() and processes.lost(error):
      code, stopped = 0, preemption.Preemption()
  # What fails while another thread takes leave is not to be said.
  preemption.claim()
  if fault and stopped:
    print(f'The others had left: {_first_line(fault)}', file=sys.stderr)
  elif fault:
    traceback.print_exception(fault)
  if stopped:
    print(f'sjft_jax: {stopped}', file=sys.stderr)
  if flags.FLAGS.is_parsed() and _MULTIHOST.value:
    from sjft_jax import processes

    processes.leave(code)
  if preemption.asked():
    # Threads may be at work still, on what Python would take down under them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


if __name__ == '__main__':
  app.define_help_flags()
  sys.exit(run(sys.argv))
