"""Checkpoints in a store: directories of the disk, each packed into one object.

Orbax writes to gs:// but not to s3://. So it writes on the disk, and what it
wrote goes into a tar, which is there once it is whole.
"""

import concurrent.futures
import contextlib
import pathlib
import tarfile

from sjft_jax import files, paths


class Packed:
  """The checkpoints <step>.tar of a directory in a store.

  Args:
    directory: in the store.
    keep: how many of the last stay.

  Attributes:
    here: directory of the disk where step <step> is written as `here`/<step>,
      and is read.
  """

  def __init__(self, directory, *, keep: int):
    self._directory, self._keep = directory, keep
    self._stack = contextlib.ExitStack()
    self.here: pathlib.Path = self._stack.enter_context(files.scratch())
    self._executor = self._stack.enter_context(
      concurrent.futures.ThreadPoolExecutor(1)
    )
    self._sent, self._sending = None, None

  def latest_step(self) -> int | None:
    """The latest step in the store, or on its way there; None without any."""
    if self._sent is not None:
      return self._sent
    return max(self._steps(), default=None)

  def _steps(self):
    names = (name for name, _ in paths.below(self._directory))
    found = (name.removesuffix('.tar') for name in names)
    return sorted(int(name) for name in found if name.isdigit())

  def send(self, step: int) -> None:
    """Begins to put a step; `here` may change after `wait`."""
    self._sent = step
    self._sending = self._executor.submit(self._put, step)

  def _put(self, step):
    with (
      files.replacing(self._directory / f'{step}.tar') as file,
      tarfile.open(fileobj=file, mode='w') as tar,
    ):
      tar.add(self.here / str(step), str(step))
    for old in self._steps()[: -self._keep]:
      (self._directory / f'{old}.tar').unlink()

  def wait(self) -> None:
    """Returns once what was sent is there.

    Raises:
      UserError: if it could not be put.
    """
    if self._sending:
      self._sending.result()

  def fetch(self, step: int) -> None:
    """Copies a step from the store to `here`."""
    self.wait()
    with (
      files.on_disk(self._directory / f'{step}.tar') as path,
      tarfile.open(path, 'r:') as tar,
    ):
      tar.extractall(self.here, filter='data')

  def close(self) -> None:
    """Waits for what is on its way."""
    with self._stack:
      self.wait()
