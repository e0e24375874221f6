"""SIGTERM: the machine is wanted by others. What is done is saved, exit code 0.

Schedulers send it some time before they kill. Most stages keep what they have
finished and may be left at any point. Those in which processes do something
together, as training, are left where all have agreed to.
"""

import contextlib
import signal

_asked = False
_deferrals = 0


class Preemption(BaseException):
  """Ends the command; not an Exception, so that nothing on the way stops it."""

  def __init__(self, where: str = ''):
    super().__init__(
      f'Stopped by SIGTERM{where}; the same command goes on from here.'
    )


def listen() -> None:
  """From now on, SIGTERM raises `Preemption` in the main thread."""
  signal.signal(signal.SIGTERM, _hear)


def _hear(number, frame):
  del number, frame
  global _asked
  _asked = True
  if not _deferrals:
    raise Preemption


def asked() -> bool:
  """Whether this process was sent SIGTERM."""
  return _asked


def check() -> None:
  """Raises `Preemption` if this process was sent SIGTERM."""
  if _asked:
    raise Preemption


@contextlib.contextmanager
def deferred():
  """SIGTERM waits for the end of the block, or for `check` within it."""
  global _deferrals
  _deferrals += 1
  try:
    yield
  finally:
    _deferrals -= 1
  if not _deferrals:
    check()
