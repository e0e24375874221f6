"""SIGTERM: the machine is wanted by others. What is done is saved, exit code 0.

Schedulers send it some time before they kill. Most stages keep what they have
finished and may be left at any point. Those in which processes do something
together, as training, are left where all have agreed to. All this is Python's,
which hears a signal between two instructions of the main thread, not while
that compiles or waits in a native call. So a thread listens, too.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

# Between two looks for what other processes were sent.
_LOOK_SECONDS = 0.5
_asked = False
_deferrals = 0


class Preemption(BaseException):
  """Ends the command; not an Exception, so that nothing on the way stops it."""

  def __init__(self, where: str = ''):
    super().__init__(
      f'Stopped by SIGTERM{where}; the same command goes on from here.'
    )


def listen() -> None:
  """From now on, SIGTERM raises `Preemption` in the main thread, once."""
  signal.signal(signal.SIGTERM, _hear)


def _hear(number, frame):
  del number, frame
  global _asked
  again, _asked = _asked, True
  # Schedulers may send it twice: the second must not disturb the leaving.
  if not again and not _deferrals:
    raise Preemption


def watch(elsewhere: Callable[[], bool], end: Callable[[], None]) -> None:
  """Has a thread hear SIGTERM, whatever the main thread is doing.

  Args:
    elsewhere: whether another process that works with this one was sent it,
      which is as good: this one sends it to itself. Asked twice a second.
    end: called in the thread as soon as SIGTERM came; it sees to it that the
      process ends in time.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # Written to by the signal itself, long before Python's handler may run.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def hear():
    while True:
      if select.select([reader], [], [], _LOOK_SECONDS)[0]:
        if signal.SIGTERM in os.read(reader, 64):
          break
      elif elsewhere():
        os.kill(os.getpid(), signal.SIGTERM)
    end()

  threading.Thread(target=hear, daemon=True, name='preemption').start()


def disarm() -> None:
  """From now on SIGTERM raises nothing: the command is over."""
  global _deferrals
  _deferrals += 1


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
