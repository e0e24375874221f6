"""The source as a stream of described images, with or without a cache.

A cache keeps the pixel counts of every histogram, compressed, so that a later
search with the same bank, edges and images reads no image at all. It belongs
to one digest of all that the counts depend on, and grows by units of images:
one that is killed goes on after the last whole unit.
"""

import itertools
import pathlib

import numpy as np
import tensorstore

from sjft_jax import files, paths
from sjft_jax.describe import Block
from sjft_jax.errors import UserError

# Images per unit: processes that share a cache write whole units.
UNIT = 1024
# Numbers in a chunk of the file.
_CHUNK = 2**21


class Described:
  """A data set whose images are described whenever they are asked for.

  Args:
    describer: from `describe.fit`.
    dataset: the images.
  """

  def __init__(self, describer, dataset):
    self.describer, self.dataset = describer, dataset

  def __len__(self):
    return len(self.dataset)

  def places(self, start, stop):
    """The positions of start..stop that the stream has, int64 [n]."""
    return np.arange(start, stop)

  def blocks(self, start, stop, rows):
    """Yields `Block`s of positions start..stop, in order."""
    return self.again(np.arange(start, stop), rows)

  def one_block(self, rows=1024) -> Block:
    """All of the stream in one `Block`, as of a few images.

    Args:
      rows: images described at a time, see `blocks`.
    """
    blocks = list(self.blocks(0, len(self), rows))
    if not blocks:
      dims = len(self.describer.weight_d)
      return Block(
        index_n=np.zeros(0, np.int64),
        counts_nd=np.zeros((0, dims), np.int32),
        stop=0,
        bad=[],
      )
    return _joined(blocks)

  def again(self, index_n, rows):
    """Yields `Block`s of these positions, ascending, read anew."""
    part = self.dataset.subset(index_n)
    for block in self.describer.blocks(part, rows=rows):
      yield Block(
        index_n=index_n[block.index_n],
        counts_nd=block.counts_nd,
        stop=int(index_n[block.stop - 1]) + 1,
        bad=[(int(index_n[i]), reason) for i, reason in block.bad],
      )


class Cached(Described):
  """A described data set that is kept.

  Args:
    describer: from `describe.fit`.
    dataset: the images.
    directory: of caches; this one is a directory in it, named by `key`.
    key: digest of all that the counts depend on.

  Raises:
    UserError: if something else lies where the cache should be.
  """

  def __init__(self, describer, dataset, directory, key):
    super().__init__(describer, dataset)
    self._path = pathlib.Path(directory).expanduser().resolve() / key
    dims = len(describer.weight_d)
    small = describer.pixels_d.max() < 2**16
    try:
      self._counts = tensorstore.open(
        {
          'driver': 'zarr3',
          'kvstore': {'driver': 'file', 'path': f'{self._path}/counts'},
          'metadata': {
            'shape': [len(dataset), dims],
            'data_type': 'uint16' if small else 'uint32',
            'chunk_grid': {
              'name': 'regular',
              'configuration': {
                'chunk_shape': [UNIT, min(dims, _CHUNK // UNIT)]
              },
            },
            'codecs': [
              {'name': 'bytes', 'configuration': {'endian': 'little'}},
              {'name': 'zstd', 'configuration': {'level': 1}},
            ],
          },
        },
        create=True,
        open=True,
      ).result()
    except ValueError as error:
      if 'No space left on device' in str(error):
        raise
      raise UserError(
        f'search.cache: {self._path} cannot be opened as a cache of this '
        f'search ({str(error).splitlines()[0]}). Choose another directory.'
      ) from error

  def blocks(self, start, stop, rows):
    """Yields `Block`s of positions start..stop, in order."""
    units = range(start - start % UNIT, stop, UNIT)
    for kept, group in itertools.groupby(units, self._has):
      group = list(group)
      blocks = self._read(group) if kept else self._describe(group, rows)
      for block in blocks:
        block = _between(block, start, stop)
        for first in range(0, max(1, len(block.index_n)), rows):
          yield _part(block, first, rows)

  def _marker(self, unit):
    return self._path / 'units' / f'{unit}.json'

  def _has(self, unit):
    return self._marker(unit).exists()

  def _end(self, unit):
    return min(unit + UNIT, len(self))

  def _read(self, units):
    # One unit ahead: reading and unpacking go on beside the search.
    reads = {}
    for unit, after in zip(units, [*units[1:], None], strict=True):
      for at in (unit, after):
        if at is not None and at not in reads:
          reads[at] = self._counts[at : self._end(at)].read()
      bad = [(i, reason) for i, reason in files.read_json(self._marker(unit))]
      good_n = np.ones(self._end(unit) - unit, bool)
      good_n[[i - unit for i, _ in bad]] = False
      yield Block(
        index_n=unit + np.flatnonzero(good_n),
        counts_nd=reads.pop(unit).result()[good_n],
        stop=self._end(unit),
        bad=bad,
      )

  def _describe(self, units, rows):
    """Describes consecutive units in one sweep, keeping each."""
    pending = _Join()
    stream = super().blocks(units[0], self._end(units[-1]), rows)
    for unit in units:
      while pending.stop < self._end(unit):
        pending.add(next(stream))
      block = pending.take(unit, self._end(unit))
      counts_nd = np.zeros(
        (self._end(unit) - unit, self._counts.shape[1]),
        self._counts.dtype.numpy_dtype,
      )
      counts_nd[block.index_n - unit] = block.counts_nd
      bad = [(int(i), str(reason)) for i, reason in block.bad]
      # What could not be read may be readable later, unlike what is no image or
      # not there; and another run may have read it, and marked this unit.
      if not passing(bad):
        self._counts[unit : self._end(unit)].write(counts_nd).result()
        # Last: what is marked is whole.
        files.write_json(self._marker(unit), bad, shared=True)
      yield block


class Within(Described):
  """A stream some of whose images are passed over, as if they were not there.

  Args:
    stream: of all.
    place: positions of the images that are yielded, int [n].
  """

  def __init__(self, stream, place):
    super().__init__(stream.describer, stream.dataset)
    self._stream = stream
    self._kept_s = np.zeros(len(stream), bool)
    self._kept_s[place] = True

  def places(self, start, stop):
    """The positions of start..stop that the stream has, int64 [n]."""
    return start + np.flatnonzero(self._kept_s[start:stop])

  def again(self, index_n, rows):
    """Yields `Block`s of these positions, ascending, read anew."""
    return self._stream.again(index_n, rows)

  def blocks(self, start, stop, rows):
    """Yields `Block`s of positions start..stop, in order."""
    for block in self._stream.blocks(start, stop, rows):
      kept_n = self._kept_s[block.index_n]
      yield Block(
        index_n=block.index_n[kept_n],
        counts_nd=block.counts_nd[kept_n],
        stop=block.stop,
        bad=[(i, reason) for i, reason in block.bad if self._kept_s[i]],
      )


def passing(bad) -> list:
  """Positions of the images that another attempt may read.

  Args:
    bad: (position, reason) of each bad image.
  """
  return [i for i, reason in bad if paths.may_pass(reason)]


def refuse_outage(lost, ids, images, max_fraction):
  """Refuses to go on where too many images cannot be read for now.

  Args:
    lost: positions of those that cannot.
    ids: of all.
    images: that were to be read, among which they are.
    max_fraction: the largest share of them to go on without.

  Raises:
    UserError: if they are more.
  """
  if len(lost) > max_fraction * images:
    raise UserError(
      f'{len(lost)} or more of {images} source images cannot be read now, '
      f'{ids[lost[0]]} among them: more than max_bad_fraction={max_fraction}. '
      'Look after their disk, then give the same command again; if it has lost '
      'them, with a larger --config.max_bad_fraction.'
    )


def refuse_lost_target(read, images):
  """Refuses to go on without a target image.

  Args:
    read: target images that could be read.
    images: all of them, which could be read when the run began.

  Raises:
    UserError: if those are fewer.
  """
  if read != images:
    raise UserError(
      'A target image cannot be read any more. Look after its disk, then give '
      'the same command again.'
    )


class _Join:
  """Blocks that were added, to be cut at other places."""

  def __init__(self):
    self._blocks, self.stop = [], 0

  def add(self, block):
    self._blocks.append(block)
    self.stop = block.stop

  def take(self, start, stop):
    """What lies in start..stop; the rest stays."""
    block = _joined(self._blocks)
    self._blocks = [_between(block, stop, self.stop)]
    return _between(block, start, stop)


def _joined(blocks):
  return Block(
    index_n=np.concatenate([b.index_n for b in blocks]),
    counts_nd=np.concatenate([b.counts_nd for b in blocks]),
    stop=blocks[-1].stop,
    bad=[entry for b in blocks for entry in b.bad],
  )


def _between(block, start, stop):
  inside = slice(*np.searchsorted(block.index_n, [start, stop]))
  return Block(
    index_n=block.index_n[inside],
    counts_nd=block.counts_nd[inside],
    stop=min(stop, block.stop),
    bad=[(i, reason) for i, reason in block.bad if start <= i < stop],
  )


def _part(block, first, rows):
  """Rows of a block from `first` on; the last part has what is not in rows."""
  last = first + rows >= len(block.index_n)
  index_n = block.index_n[first : first + rows]
  return Block(
    index_n=index_n,
    counts_nd=block.counts_nd[first : first + rows],
    stop=block.stop if last else int(index_n[-1]) + 1,
    bad=block.bad if last else [],
  )
