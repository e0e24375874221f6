"""Finds the images of one set that repeat images of another, in one pass.

Three tests:

- name: the paths inside both sets are equal, or else the file stems. Either is
  trusted only where most of a sample of such pairs show the same picture:
  numbers name nothing.
- bytes: the files are equal.
- picture: the fingerprints are alike, and so are the pixels when compared.

Copies of one file, as of a placeholder, are looked at once, and stay together:
n of them here and m there are n repeats of one group, not n times m.
"""

import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from sjft_jax import machine, paths, progress
from sjft_jax.data import fingerprints, hashes, pipelines, preprocess
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError
from sjft_jax.ops import likeness

# Pictures that go to the device at a time.
_SOURCES, _TARGETS = 2048, 512
TESTS = ('name', 'bytes', 'picture')
_NAMES_COMPARED = 64
_best_view = jax.jit(likeness.best_view)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeat:
  """A source image that repeats a target image, and all copies of that.

  Attributes:
    source: its position in the source.
    targets: positions of the others in the target, ascending: equal files.
    repeated: how many of these, from the first on, the image was held against.
    tests: which found it, of name, bytes and picture.
    similarity: correlation of the fine detail of both pictures; None where
      they were not compared.
  """

  source: int
  targets: tuple[int, ...]
  repeated: int
  tests: tuple[str, ...]
  similarity: float | None


class Target:
  """The images that may be repeated: 13 kB of memory each.

  Args:
    dataset: the images.
    threads: that decode; 0 = one per CPU.
    label: what the progress bar says.

  Raises:
    UserError: if one is there and cannot be read.
  """

  def __init__(self, dataset: Dataset, threads: int, label: str):
    self.dataset = dataset
    self.of_path = _unique(map(_path, dataset.ids))
    self.of_stem = _unique(map(stem, dataset.ids))
    # Of every file its positions; of every position that of the first copy.
    copies, first_of = collections.defaultdict(list), {}
    self.first = np.arange(len(dataset))
    # Images too small or too flat to be told from others by their look.
    self.without = 0
    views, prints, owner, region, sha256 = [], [], [], [], []
    rows = pipelines.each(dataset, self._describe, threads)
    with progress.bar(len(dataset), label) as bar:
      for i, (digest, found) in enumerate(rows):
        bar.update()
        self.without += not found
        sha256.append(digest or hashes.NO_DIGEST)
        first = first_of.setdefault(digest, i) if digest else i
        copies[first].append(i)
        self.first[i] = first
        if first != i:
          continue  # The first copy of a file is looked at for all.
        for r, (seen, own) in enumerate(found):
          views.append(seen)
          prints.append(own)
          owner.append(i)
          region.append(r)
    self.views = np.reshape(
      views, (-1, len(fingerprints.VIEWS), fingerprints.SIZE)
    ).astype(np.float32)
    self.owner, self.region = np.array(owner, int), np.array(region, int)
    self.copies = {first: tuple(index) for first, index in copies.items()}
    self.of_bytes = first_of
    # What a hash table would hold of these images.
    self.part = hashes.Part(
      start=0,
      sha256=np.frombuffer(b''.join(sha256), np.uint8).reshape(-1, 32),
      fingerprint=np.reshape(prints, (-1, fingerprints.SIZE)).astype(np.int8),
      owner=self.owner,
      region=self.region,
    )
    # One decode serves the neighbours of a source image, which come together.
    self.regions = functools.lru_cache(maxsize=256)(
      lambda i: _regions(dataset, i)
    )

  def _describe(self, i):
    try:
      data = self.dataset.read(i)
      found = fingerprints.regions(fingerprints.decode(data))
    except preprocess.BadImage:
      return None, []
    except OSError as error:
      if paths.is_transient(error):
        raise UserError(_lost(self.dataset.ids[i], error)) from error
      return None, []
    digest = hashlib.sha256(data).digest()
    return digest, [
      (fingerprints.view_fingerprints(r), fingerprints.fingerprint(r))
      for r in found
    ]


def find(
  source: Dataset,
  start: int,
  stop: int,
  target: Target,
  *,
  screen: float,
  confirm: float,
  cache: pathlib.Path,
  threads: int,
) -> tuple[list[Repeat], dict]:
  """Holds a range of the source against every target image.

  Args:
    source: the images.
    start: first position.
    stop: position to stop before.
    target: the images that may be repeated.
    screen: pictures are compared if the product of their fingerprints, the
      best over the views, is larger; 0..1.
    confirm: they are the same if the correlation of their fine detail is
      larger; 0..1.
    cache: directory of hash tables.
    threads: that decode and compare; 0 = one per CPU.

  Returns:
    The repeats by source and target position, and what was counted:
    without_fingerprint (source images), pairs_compared, equal_names,
    equal_names_compared, equal_names_alike; unread, the ids of images that
    could not be read this time, if there are any.

  Raises:
    UserError: if an image that could be read before cannot be read now.
  """
  if start == stop:
    return [], {}
  table = hashes.table(source, start, stop, cache, threads)
  with contextlib.closing(table):
    return _find(
      source, range(start, stop), table, target, screen, confirm, threads
    )


def within(
  one: Target, other: Target, *, screen: float, confirm: float, threads: int
) -> list[Repeat]:
  """Holds target images against others, or against those before them.

  Their hashes are in memory, so that none are stored.

  Args:
    one: the images that stand for the source.
    other: the images that may be repeated; `one` itself: each image is held
      against those before it.
    screen: as of `find`.
    confirm: as of `find`.
    threads: that decode and compare; 0 = one per CPU.

  Returns:
    The repeats by position; `source` is of `one`, `targets` of `other`.

  Raises:
    UserError: if an image that could be read before cannot be read now.
  """
  dataset, positions = one.dataset, range(len(one.dataset))
  found, _ = _find(
    dataset, positions, [one.part], other, screen, confirm, threads
  )
  if one is not other:
    return found
  # The copies stay shared: of n, each cut for itself would be n^2 / 2.
  return [
    dataclasses.replace(r, repeated=before)
    for r in found
    if (before := bisect.bisect_left(r.targets, r.source))
  ]


def _find(source, positions, parts, target, screen, confirm, threads):
  """What `find` returns, of the hashes of these positions."""
  tests, similarity, unread = collections.defaultdict(list), {}, []
  counts = collections.Counter()
  with concurrent.futures.ThreadPoolExecutor(
    threads or machine.cores()
  ) as executor:
    # Within one set each name is an image's own.
    if source is not target.dataset:
      for pairs in _equal_names(source, positions, target):
        sample = pairs[:: max(1, -(-len(pairs) // _NAMES_COMPARED))]
        whole = functools.partial(_compare_wholes, source, target)
        alike = sum(r > confirm for r in executor.map(whole, sample))
        counts['equal_names'] += len(pairs)
        counts['equal_names_compared'] += len(sample)
        counts['equal_names_alike'] += alike
        if 2 * alike > len(sample):
          for i, t in pairs:
            tests[i, int(target.first[t])].append('name')
    compare = functools.partial(_compare, source, target)
    for part in parts:
      unread += [str(source.ids[i]) for i in part.lost]
      copies = collections.defaultdict(list)
      of_bytes = {}
      for i, digest in enumerate(part.sha256, part.start):
        copies[of_bytes.setdefault(digest.tobytes(), i)].append(i)
      for digest, first in of_bytes.items():
        if (t := target.of_bytes.get(digest)) is not None:
          for i in copies[first]:
            tests[i, t].append('bytes')
      candidates = _candidates(part, copies, source, target, screen)
      counts['without_fingerprint'] += len(part.sha256) - len(
        np.unique(part.owner)
      )
      counts['pairs_compared'] += sum(map(len, candidates.values()))
      for (first, t), r in itertools.chain.from_iterable(
        executor.map(compare, candidates.items())
      ):
        if r > confirm:
          for i in copies[first]:
            tests[i, t].append('picture')
            similarity[i, t] = r
  repeats = [
    Repeat(
      source=i,
      targets=target.copies[t],
      repeated=len(target.copies[t]),
      tests=tuple(tests[i, t]),
      similarity=similarity.get((i, t)),
    )
    for i, t in sorted(tests)
  ]
  return repeats, dict(counts) | ({'unread': unread} if unread else {})


def _path(name: str) -> str:
  """Where a file lies in its set: no set's name, no suffix, in lower case."""
  # Before the colon stands the set's name; of the target, then, which part.
  name = str(name)
  inside = name.partition(':')[2] or name
  if name.startswith(('target:train/', 'target:test/')):
    inside = inside.partition('/')[2]
  folder, slash, file = inside.rpartition('/')
  return (folder + slash + (file.rpartition('.')[0] or file)).lower()


def stem(name: str) -> str:
  """The last part of an id without its suffix, in lower case."""
  return _path(name).rpartition('/')[2]


def _unique(names) -> dict[str, int]:
  """Position of every name that comes once."""
  names = list(names)
  count = collections.Counter(names)
  return {name: i for i, name in enumerate(names) if count[name] == 1}


def _equal_names(source, positions, target) -> Iterator[list[tuple[int, int]]]:
  """Pairs whose paths are equal, then further ones whose stems are."""
  joined = set()
  for name_of, known in ((_path, target.of_path), (stem, target.of_stem)):
    mine = _unique(name_of(source.ids[i]) for i in positions)
    pairs = [
      (positions[at], known[name])
      for name, at in mine.items()
      if name in known and at not in joined
    ]
    joined |= {i - positions.start for i, _ in pairs}
    yield pairs


def _regions(dataset, i) -> list[np.ndarray]:
  return fingerprints.regions(fingerprints.decode(dataset.read(i)))


def _compare_wholes(source, target, pair) -> float:
  """How like each other two pictures of equal name are; 0 if they are none."""
  try:
    regions = _regions(source, pair[0]), target.regions(pair[1])
  except preprocess.BadImage:
    return 0.0
  except OSError as error:
    # Such pairs decide whether names are trusted.
    if paths.is_transient(error):
      raise UserError(_lost(_either(source, pair[0]), error)) from error
    return 0.0
  if not all(regions):
    return 0.0
  return fingerprints.compare(
    regions[0][0], regions[1][0], fingerprints.VIEWS[0], mirrored=False
  )


def _candidates(
  part, looked_at, source, target, screen
) -> dict[int, list[tuple]]:
  """Source position -> [(its region, target picture, view, mirrored)]."""
  found = collections.defaultdict(list)
  itself = source is target.dataset
  rows = np.flatnonzero(np.isin(part.owner, list(looked_at)))
  prints = fingerprints.unpack(part.fingerprint[rows])
  for first in range(0, len(prints), _SOURCES):
    block = prints[first : first + _SOURCES]
    for s, t in _alike(block, target.views, screen):
      if itself and part.owner[rows[first + s]] == target.owner[t]:
        continue
      even, odd = _halves(target.views[t] * block[s])
      even, odd = even.sum(axis=-1), odd.sum(axis=-1)
      view = int(np.argmax(even + np.abs(odd)))
      row = rows[first + s]
      found[int(part.owner[row])].append(
        (int(part.region[row]), int(t), view, bool(odd[view] < 0))
      )
  return found


def _alike(prints, views, screen) -> Iterator[tuple[int, int]]:
  """(source row, target row) of the products above `screen`."""
  # Always the same shapes, so that the kernel is compiled once.
  padded = _padded(prints, _SOURCES)
  for first in range(0, len(views), _TARGETS):
    block = _padded(views[first : first + _TARGETS], _TARGETS)
    best_ts = np.asarray(_best_view(*_halves(block), *_halves(padded)))
    for t, s in np.argwhere(best_ts > screen):
      yield int(s), first + int(t)


def _padded(rows, count):
  if len(rows) == count:
    return rows
  full = np.zeros((count, *rows.shape[1:]), rows.dtype)
  full[: len(rows)] = rows
  return full


def _halves(prints):
  return prints[..., : fingerprints.EVEN], prints[..., fingerprints.EVEN :]


def _either(source, i) -> str:
  return f'{source.ids[i]}, or a target image like it,'


def _lost(name, error) -> str:
  return (
    f'{name} cannot be read now ({error}): unchecked, it might leak. Look '
    'after its disk, then give the same command again.'
  )


def _compare(source, target, candidate) -> list[tuple]:
  """[((source, target), similarity)] of one source image's candidates."""
  i, rows = candidate
  best = {}
  try:
    with contextlib.suppress(preprocess.BadImage):
      mine = _regions(source, i)
      for region, row, view, mirrored in rows:
        t = int(target.owner[row])
        r = fingerprints.compare(
          mine[region],
          target.regions(t)[target.region[row]],
          fingerprints.VIEWS[view],
          mirrored,
        )
        best[i, t] = max(r, best.get((i, t), 0.0))
  except OSError as error:
    # It could be read when it was hashed: passed over, it might leak.
    raise UserError(_lost(_either(source, i), error)) from error
  return list(best.items())
