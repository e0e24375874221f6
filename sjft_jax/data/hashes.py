"""Hash tables of image sets: of every file its SHA-256 and its fingerprints.

A table is a directory of parts, one for every PART images, each whole or
absent: a killed run goes on with the next part, and another target finds the
table finished. Reading takes one part at a time, so that memory does not grow
with the set.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np

from sjft_jax import files, paths, progress
from sjft_jax.data import fingerprints, pipelines, preprocess
from sjft_jax.data.dataset import Dataset

PART = 16384  # images
FORMAT = 1  # of the parts; another one where a fingerprint changes its meaning
_PROBES = 4  # of a part
NO_DIGEST = bytes(32)
_FIELDS = 'sha256', 'fingerprint', 'owner', 'region'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
  """The hashes of consecutive images.

  Attributes:
    start: position of the first image.
    sha256: uint8 [n, 32]; zero where a file cannot be read.
    fingerprint: int8 [f, fingerprints.SIZE]: none for a bad, small or flat
      picture, two for one with a border.
    owner: position of each fingerprint's image, int64 [f], ascending.
    region: which of `fingerprints.regions` it is of, int8 [f].
    lost: positions of what could not be read this time, and may be later.
  """

  start: int
  sha256: np.ndarray
  fingerprint: np.ndarray
  owner: np.ndarray
  region: np.ndarray
  lost: tuple[int, ...] = ()


def table(
  dataset: Dataset,
  start: int,
  stop: int,
  cache: pathlib.Path,
  threads: int,
) -> Iterator[Part]:
  """Yields the hashes of a range of a set, computed or as they were stored.

  Args:
    dataset: the images.
    start: first position: of a source, where the set is a pool.
    stop: position to stop before.
    cache: directory of all tables.
    threads: that decode; 0 = one per CPU.

  Yields:
    The parts, in order.
  """
  # Named by its files alone, as runs call one set differently.
  key = _key(dataset, start, stop)[:24]
  directory = cache / f'{key}-{FORMAT}.{preprocess.PIXELS_VERSION}'
  name = str(dataset.ids[start]).partition(':')[0]
  with progress.bar(stop - start, f'hash {name}') as bar:
    for first in range(start, stop, PART):
      last = min(first + PART, stop)
      path = directory / f'{first - start:09d}.npz'
      part = _stored(path, dataset, first, last)
      if part is None:
        part = hash_range(dataset, first, last, threads, bar)
        fields = vars(part) | {'owner': part.owner - first}
        # What could not be read may be readable later.
        if not part.lost:
          # One that is nowhere, or not this user's, is none.
          with (
            contextlib.suppress(NotADirectoryError, PermissionError),
            files.replacing(path, shared=True) as file,
          ):
            np.savez(file, **{k: fields[k] for k in _FIELDS})
      bar.update(last - start - bar.n)
      yield part


def hash_range(dataset, start, stop, threads, bar) -> Part:
  """The hashes of the images start..stop; moves the bar on."""
  lost = []
  sha256, prints, owner, region = [], [], [], []

  def one(i: int):
    try:
      data = dataset.read(i)
    except OSError as error:
      if paths.is_transient(error):
        lost.append(i)
      return NO_DIGEST, []
    digest = hashlib.sha256(data).digest()
    try:
      found = fingerprints.regions(fingerprints.decode(data))
    except preprocess.BadImage:
      return digest, []
    return digest, [fingerprints.fingerprint(r) for r in found]

  rows = pipelines.each(dataset, one, threads, start, stop)
  for i, (digest, found) in enumerate(rows, start):
    sha256.append(digest)
    prints += found
    owner += [i] * len(found)
    region += range(len(found))
    bar.update()
  return Part(
    start=start,
    sha256=np.frombuffer(b''.join(sha256), np.uint8).reshape(-1, 32),
    fingerprint=np.reshape(prints, (-1, fingerprints.SIZE)).astype(np.int8),
    owner=np.array(owner, np.int64),
    region=np.array(region, np.int8),
    lost=tuple(sorted(lost)),
  )


def sha256_of(dataset: Dataset, i: int) -> bytes:
  """SHA-256 of a file, 32 bytes; zeros where it cannot be read."""
  try:
    return hashlib.sha256(dataset.read(i)).digest()
  except OSError:
    return NO_DIGEST


def _key(dataset, start, stop) -> str:
  """Digest of names, sizes and times, whatever the run calls the set."""
  one = 0 if dataset.source is None else dataset.source[start]
  sha = hashlib.sha256(dataset.stamps[one].encode())
  for name in dataset.ids[start:stop]:
    sha.update(name.partition(':')[2].encode() + b'\0')
  sha.update(dataset.sizes[start:stop].astype('<i8').tobytes())
  return sha.hexdigest()


def _stored(path, dataset, start, stop) -> Part | None:
  """A part as it was stored, if it is whole and of these files.

  Where files have no times names and sizes of others may be equal, so some are
  read; and so are those that could not be, which may have been mended.
  """
  try:
    stored = files.read_npz(path)
    fields = {name: stored[name] for name in _FIELDS}
    sha256 = fields['sha256'].reshape(stop - start, 32)
  except files.NO_NPZ:
    return None
  some = np.linspace(start, stop - 1, _PROBES).astype(int)
  unread = np.flatnonzero(~sha256.any(axis=1)) + start
  for i in np.union1d(some, unread).tolist():
    if sha256[i - start].tobytes() != sha256_of(dataset, i):
      return None
  fields['owner'] = fields['owner'] + start
  return Part(start=start, **fields)
