"""A disk that fails, for tests."""

import io
import os


class _Failing(io.FileIO):
  def __init__(self, path, number, good):
    super().__init__(path)
    self._number, self._left = number, good

  def readinto(self, buffer):
    count = super().readinto(buffer)
    self._left -= count
    if self._left < 0:
      raise OSError(self._number, os.strerror(self._number))
    return count

  def readall(self):
    return self.read(1 << 30)


def opened(path, number, good):
  """A file of which the disk gives so many bytes, wherever, and no more.

  Args:
    path: of the file.
    number: errno of what reading on raises.
    good: how many bytes.
  """
  return io.BufferedReader(_Failing(path, number, good), 512)
