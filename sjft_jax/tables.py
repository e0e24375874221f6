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

  distance_qk: float64 [q, k], nats, ascending; inf where there is none yet.
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
    """Takes in new pairs, in any order; ties go to the lower source index."""
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
    """(row, index, distance) of what lies in source positions start..stop."""
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

  Raises:
    ValueError: if it names an image that is not in `target_ids`, `source_ids`.
  """
  with files.opened(path) as file:
    rows = pq.read_table(file, schema=SCHEMA)
  places = []
  for name, ids in (('target_id', target_ids), ('source_id', source_ids)):
    place_n = pc.index_in(rows[name], value_set=pa.array(ids, pa.string()))
    if place_n.null_count:
      unknown = rows[name].filter(pc.is_null(place_n))[0]
      raise ValueError(f'No image is called {unknown}.')
    places.append(place_n.to_numpy())
  row_n, index_n = places
  rank_n = rows['rank'].to_numpy()
  table = Table.empty(len(target_ids), int(rank_n.max(initial=-1)) + 1)
  table.distance_qk[row_n, rank_n] = rows['distance'].to_numpy()
  table.index_qk[row_n, rank_n] = index_n
  return table
