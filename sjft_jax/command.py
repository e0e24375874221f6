"""What every command is wrapped in: one line and a code for what went wrong."""

import argparse
import errno
import os
import signal
import sys

from sjft_jax import paths
from sjft_jax.errors import UserError

# What the machine lacks, or a path asks of it in vain, is no fault of the
# program.
_MACHINE = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some space',
  errno.EROFS: 'name a place that can be written to',
  errno.EACCES: 'give yourself the right to it, or name another place',
  # Of a path that a user gave: a file stands where a directory is needed.
  errno.ENOTDIR: 'name a place that lies in a directory, not in a file',
  errno.ENAMETOOLONG: 'give a shorter name',
}
# What is to be done after Control-C.
_AGAIN = 'give the same command again.'
GOES_ON = 'the same command goes on from here.'


def parser(name, doc, of_a_run=False) -> argparse.ArgumentParser:
  """A parser of the command line that shows the whole docstring as help.

  Args:
    name: of the module, as in python -m sjft_jax.NAME.
    doc: its docstring.
    of_a_run: the command needs --workdir, the directory of a run.
  """
  made = argparse.ArgumentParser(
    prog=f'python -m sjft_jax.{name}',
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  if of_a_run:
    made.add_argument(
      '--workdir',
      required=True,
      help='directory of a run; of a comparison, one of its runs/<arm>-<seed>',
    )
  return made


def guarded(work, *args, interrupted=_AGAIN) -> int:
  """Runs `work`; what the user can put right is one line and exit code 2.

  Args:
    work: the command. A fault of the program passes through, as does
      `preemption.Preemption`.
    *args: of `work`.
    interrupted: the end of the sentence that is said after Control-C; `GOES_ON`
      of a command that resumes.

  Returns:
    The exit code: 0, 2, 130 after Control-C, or 141 where nobody reads on.
  """
  try:
    work(*args)
    sys.stdout.flush()
  except UserError as error:
    return _say(error)
  except BrokenPipeError:
    # Who reads the output has read enough, as `head` does; nor may Python
    # write the rest when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except KeyboardInterrupt:
    print(f'\nInterrupted; {interrupted}', file=sys.stderr)
    return 130
  except Exception as error:
    mend = _machine_mend(error)
    if mend is None:
      raise
    return _say(mend)
  return 0


def _say(message) -> int:
  print(f'sjft_jax: {" ".join(str(message).split())}', file=sys.stderr)
  return 2


def _machine_mend(error):
  """The line for a fault of the machine, or None: a fault of the program."""
  while error is not None:
    code = getattr(error, 'errno', None)
    # TensorStore reports a full disk in words alone.
    if code is None and 'No space left on device' in str(error):
      code = errno.ENOSPC
    if code in _MACHINE:
      return (
        f'{error}: {_MACHINE[code]}, then give the command again; what is '
        'finished is kept.'
      )
    if line := paths.fault(error):
      return line
    error = error.__cause__ or error.__context__
  return None
