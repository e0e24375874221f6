"""A set of images as random access: bytes, a label and a stable id each."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable

import numpy as np

from sjft_jax import paths

# Images of a set that its digest has read: names and sizes alone may be those
# of others, where files are not compressed.
_PROBES = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
  """Images by position.

  Attributes:
    name: 'target', the source's name, or 'pool'.
    classes: class names by label; in a pool '<source>:<class>'.
    ids: unicode [n], '<name>:<stable id>', unique.
    labels: int32 [n].
    sizes: encoded bytes of each image, int64 [n]; -1 where unreadable.
    read: position -> encoded bytes; safe in threads; may raise OSError.
    version: of a set that states one.
    sources: a pool's source names, else ().
    source: a pool's index into `sources`, int32 [n], else None.
    whole: the set that images were withheld from, else None.
    place: positions in it, int64 [n], ascending, else None.
    stamps: of a pool one for each source, else one: another text where a file
      was written since; '' where that cannot be told, as in a store.
  """

  name: str
  classes: tuple[str, ...]
  ids: np.ndarray
  labels: np.ndarray
  sizes: np.ndarray
  read: Callable[[int], bytes]
  version: str = ''
  sources: tuple[str, ...] = ()
  source: np.ndarray | None = None
  whole: 'Dataset | None' = None
  place: np.ndarray | None = None
  stamps: tuple[str, ...] = ('',)

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 over version, classes, ids, labels, sizes and a few images, hex.

    Raises:
      UserError: if one of those images cannot be read now.
    """
    sha = hashlib.sha256(json.dumps([self.version, self.classes]).encode())
    sha.update('\0'.join(self.ids.tolist()).encode())
    sha.update(self.labels.astype('<i4').tobytes())
    sha.update(self.sizes.astype('<i8').tobytes())
    some = np.linspace(0, len(self) - 1, min(_PROBES, len(self)))
    for i in some.astype(int).tolist():
      sha.update(self._probe(i))
    return sha.hexdigest()

  def _probe(self, i: int) -> bytes:
    try:
      return hashlib.sha256(self.read(i)).digest()
    except OSError as e:
      if paths.is_transient(e):
        raise paths.unreadable(self.ids[i], e) from e
      return b''

  def subset(self, index: np.ndarray) -> 'Dataset':
    """The images at these positions, int [m], in this order; same classes."""
    index = np.asarray(index)
    read = self.read
    return dataclasses.replace(
      self,
      ids=self.ids[index],
      labels=self.labels[index],
      sizes=self.sizes[index],
      source=None if self.source is None else self.source[index],
      read=lambda i: read(int(index[i])),
      whole=None,
      place=None,
    )

  def without(self, ids) -> 'Dataset':
    """The images but those named; it remembers the whole set.

    What is made of every image by itself is then the same for all that is
    withheld, and need not be made again.

    Args:
      ids: of images; none = the set itself.
    """
    kept = np.flatnonzero(~np.isin(self.ids, list(ids)))
    if len(kept) == len(self):
      return self
    return dataclasses.replace(self.subset(kept), whole=self, place=kept)


def bare(classes, ids, labels, sizes, read, version='', stamp='') -> Dataset:
  """A set that has no name yet: ids as they are within it.

  Args:
    classes: class names by label.
    ids: text [n].
    labels: integers [n].
    sizes: encoded bytes of each image, integers [n]; -1 where unreadable.
    read: position -> encoded bytes.
    version: of a set that states one.
    stamp: as in `Dataset.stamps`.
  """
  return Dataset(
    name='',
    classes=tuple(classes),
    ids=np.array(ids, np.str_),
    labels=np.asarray(labels, np.int32),
    sizes=np.asarray(sizes, np.int64),
    read=read,
    version=version,
    stamps=(stamp,),
  )
