"""The table of the k nearest: merging, and the file it ends up in."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sjft_jax import files
from sjft_jax.ops import topk


@dataclasses.dataclass
class Table:
  """The k nearest source images of every target image so far.

  distance_qk: float64 [q, k], nats (of `features`, without unit), ascending;
    inf where there is none yet.
  index_qk: int64 [q, k], source positions; -1 where there is none yet.
  """

  distance_qk: np.ndarray
  index_qk: np.ndarray

  @classmethod
  def empty(cls, targets: int, k: int):
    """A table of `targets` rows that has seen nothing."""
    return cls(
      np.full((targets, k), np.inf), np.full((targets, k), -1, np.int64)
    )

  def merge(self, row_n, index_n, distance_n):
    """Takes in new pairs, in any order; ties go to the lower source index.

    Args:
      row_n: target positions, int [n].
      index_n: source positions that are not in these rows yet, int [n].
      distance_n: nats, float64 [n].
    """
    if not len(row_n):
      return
    order_n = np.argsort(row_n, kind='stable')
    rows_r, first_r, many_r = np.unique(
      row_n[order_n], return_index=True, return_counts=True
    )
    k = self.distance_qk.shape[1]
    if len(rows_r) * many_r.max() > 4 * max(len(row_n), len(rows_r) * k):
      # A few rows have most of the pairs. Of each no more than k can stay.
      order_n = np.lexsort((index_n, distance_n, row_n))
      place_n = np.arange(len(row_n)) - np.repeat(first_r, many_r)
      order_n = order_n[place_n < k]
      self.merge(row_n[order_n], index_n[order_n], distance_n[order_n])
      return
    # Each row's pairs side by side, filled up with empty places.
    place_n = np.arange(len(row_n)) - np.repeat(first_r, many_r)
    at = np.repeat(np.arange(len(rows_r)), many_r), place_n
    distance_rm = np.full((len(rows_r), many_r.max()), np.inf)
    index_rm = np.full(distance_rm.shape, -1, np.int64)
    distance_rm[at], index_rm[at] = distance_n[order_n], index_n[order_n]
    self.distance_qk[rows_r], self.index_qk[rows_r] = topk.merge(
      self.distance_qk[rows_r],
      self.index_qk[rows_r],
      distance_rm,
      index_rm,
      k,
    )

  def pairs(self, start, stop):
    """What lies in source positions start..stop, by row and then by rank.

    Args:
      start: the first position.
      stop: the one after the last.

    Returns:
      (row int64 [n], source position int64 [n], distance float64 [n]).
    """
    row_n, rank_n = np.nonzero(
      (self.index_qk >= start) & (self.index_qk < stop)
    )
    return (
      row_n,
      self.index_qk[row_n, rank_n],
      self.distance_qk[row_n, rank_n],
    )


SCHEMA = pa.schema(
  [
    ('target_id', pa.string()),
    ('source_id', pa.string()),
    ('rank', pa.int32()),
    ('distance', pa.float64()),
  ]
)

_PAIRS = 2**20  # of a row group


def write(path, table, target_ids, source_ids):
  """Writes neighbours.parquet: target_id, source_id, rank from 0, distance."""
  row_n, rank_n = np.nonzero(table.index_qk >= 0)
  with (
    files.replacing(path) as file,
    pq.ParquetWriter(file, SCHEMA, compression='zstd') as writer,
  ):
    # In parts: an array of ids is as wide as the longest of them.
    for at in range(0, len(row_n), _PAIRS):
      row, rank = row_n[at : at + _PAIRS], rank_n[at : at + _PAIRS]
      columns = (
        target_ids[row],
        source_ids[table.index_qk[row, rank]],
        rank.astype(np.int32),
        table.distance_qk[row, rank],
      )
      writer.write_table(pa.table([pa.array(c) for c in columns], SCHEMA))


def read(path, target_ids, source_ids) -> Table:
  """The table of neighbours.parquet.

  Args:
    path: of the file.
    target_ids: unicode [q].
    source_ids: unicode [s].

  Returns:
    `Table` of q rows, as wide as the longest list.

  Raises:
    ValueError: if it names an image that is not in `target_ids`, `source_ids`.
  """
  known = {
    'target': pa.array(target_ids, pa.string()),
    'source': pa.array(source_ids, pa.string()),
  }
  with files.opened(path) as file, pq.ParquetFile(file) as stored:
    pairs, done = stored.metadata.num_rows, 0
    row_n, index_n, rank_n = np.empty((3, pairs), np.int32)
    distance_n = np.empty(pairs)
    # In parts, as they were written: all ids at once would take gigabytes.
    for part in stored.iter_batches(_PAIRS, columns=SCHEMA.names):
      at = slice(done, done + len(part))
      row_n[at] = _places(part, 'target', known, path)
      index_n[at] = _places(part, 'source', known, path)
      rank_n[at], distance_n[at] = part['rank'], part['distance']
      done = at.stop
  table = Table.empty(len(target_ids), int(rank_n.max(initial=-1)) + 1)
  table.distance_qk[row_n, rank_n] = distance_n
  table.index_qk[row_n, rank_n] = index_n
  return table


def _places(part, side, known, path):
  """Positions among the known ids of those in a part of a file, int32 [n]."""
  name_n, ids = part[f'{side}_id'], known[side]
  place_n = pc.index_in(name_n, value_set=ids)
  if place_n.null_count:
    unknown = name_n.filter(pc.is_null(place_n))[0]
    raise ValueError(
      f'No image is called {unknown}: this {side}_id of {path} is not among '
      f'the {len(ids)} ids of the {side}.'
    )
  return place_n
