"""Files that are whole or absent: written beside, then renamed."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time

from sjft_jax.errors import UserError

# Between two looks for a file of another process.
POLL_SECONDS = 0.2


@contextlib.contextmanager
def replacing(path, mode: str = 'wb'):
  """Opens a file beside `path` that takes its name when the block succeeds."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = _beside(path)
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  try:
    with open(beside, mode, **text) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  except BaseException:
    beside.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def building(directory):
  """A path beside `directory` that takes its name when the block succeeds."""
  directory = pathlib.Path(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  beside = _beside(directory)
  shutil.rmtree(beside, ignore_errors=True)
  try:
    yield beside
    os.replace(beside, directory)
  except BaseException:
    shutil.rmtree(beside, ignore_errors=True)
    raise


def _beside(path):
  """One name for every process: what a killed one left is written over."""
  return path.with_name(f'.{path.name}.part')


def write_json(path, value):
  """Writes `value` as JSON: keys in their order, two spaces, a last newline."""
  with replacing(path) as file:
    file.write(json_bytes(value))


def json_bytes(value) -> bytes:
  """The bytes of the file that `write_json` writes."""
  return f'{json.dumps(value, indent=2, ensure_ascii=False)}\n'.encode()


def wait_for(path):
  """Returns once there is such a file: another process writes it."""
  while not pathlib.Path(path).exists():
    time.sleep(POLL_SECONDS)


def read_json(path):
  """The value of a JSON file."""
  return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))


def read_bytes(path) -> bytes:
  """The bytes of a file.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from error


def digest(path) -> str:
  """SHA-256 of a file, in hex.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error
