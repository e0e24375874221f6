"""SIGTERM: the machine is wanted by others. What is done is saved, exit code 0.

Schedulers send it some time before they kill. Most stages keep what they have
finished and may be left at any point, as at a kill. Those in which processes do
something together, as training, are left where all have agreed to.

A thread hears it: Python's own handler would wait while the main thread
compiles or is in another native call, and what it raises there is lost in a
callback of the garbage collector, and breaks what is being imported.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

# Between two looks for what other processes were sent.
_LOOK_SECONDS = 0.5
_reader = None
_asked = False
_deferrals = 0
_claimed = threading.Lock()


class Preemption(BaseException):
  """Ends the command; not an Exception, so that nothing on the way stops it."""

  def __init__(self, where: str = '', reached: str = 'here'):
    super().__init__(
      f'Stopped by SIGTERM{where}; the same command goes on from {reached}.'
    )


def listen() -> None:
  """From now on SIGTERM does not kill, but waits for `watch`."""
  global _reader
  _reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # The signal itself writes to it, whatever the main thread is doing.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, lambda number, frame: None)


def watch(elsewhere: Callable[[], bool], leave: Callable[[bool], None]) -> None:
  """Has a thread wait for SIGTERM.

  Args:
    elsewhere: whether another process that works with this one was sent it,
      which is as good. Asked twice a second.
    leave: called in the thread once it came, with whether the main thread may
      be left at any point; if not, that leaves by itself, by `Preemption`.
  """

  def hear():
    global _asked
    while True:
      if select.select([_reader], [], [], _LOOK_SECONDS)[0]:
        if signal.SIGTERM in os.read(_reader, 64):
          break
      elif elsewhere():
        break
    # In this order: who defers from now on looks whether he was asked.
    _asked = True
    leave(not _deferrals)

  threading.Thread(target=hear, daemon=True).start()


def asked() -> bool:
  """Whether SIGTERM was heard."""
  return _asked


def check() -> None:
  """Raises `Preemption` if SIGTERM was heard."""
  if _asked:
    raise Preemption


@contextlib.contextmanager
def deferred():
  """SIGTERM waits for the end of the block, or for `check` within it."""
  global _deferrals
  _deferrals += 1
  try:
    if _deferrals == 1:
      check()
    yield
  finally:
    _deferrals -= 1
  if not _deferrals:
    check()


def claim() -> None:
  """Returns to the first caller alone, which ends the process."""
  _claimed.acquire()
