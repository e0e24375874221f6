"""Why pairs are near: what every filter adds to their distance.

Some pairs of a run's galleries, each beside what is usual for its target image:
the mean over source images spread evenly over the pool. Left beside the search,
for the page to show.
"""

import numpy as np

from sjft_jax import describe, files, paths, streams, tables
from sjft_jax.errors import UserError

NAME = 'reasons.json'
TARGETS = 3
_FAR = 40  # beside the nearest: the last rank of the galleries
_USUAL = 16  # source images


def spread(label_n, count) -> np.ndarray:
  """Positions of `count` examples spread over the classes, earlier ones first.

  With more classes than `count`, the first example of evenly spaced classes;
  with fewer, the first of every class, then the second of every class, ...

  Args:
    label_n: classes of the examples, int [n].
    count: examples wanted; fewer are returned where there are fewer.
  """
  order = np.argsort(label_n, kind='stable')
  ordered = label_n[order]
  repeat = np.arange(len(label_n)) - np.searchsorted(ordered, ordered)
  order = order[np.lexsort((ordered, repeat))]
  order = order[: max(count, len(np.unique(label_n)))]
  picks = np.linspace(0, len(order) - 1, min(count, len(order)))
  return order[picks.astype(int)]


def contributions(target_d, source_d, describer):
  """What every bin adds to the distance.

  w / 2 (p - q) (log(p + e) - log(q + e)), never below 0

  Args:
    target_d: pixel counts of the target image, int [d].
    source_d: pixel counts of the source image, int [d].
    describer: that counted them.

  Returns:
    Nats, float64 [c, b]; they sum to the distance.
  """
  both = np.stack([target_d, source_d])
  p, q = describer.fractions(both)
  log_p, log_q = describer.logs(both)
  share_d = describer.weight_d / 2 * (p - q) * (log_p - log_q)
  return share_d.reshape(-1, describer.bins)


def stage(c, target, source, directory, mesh):
  """Writes reasons.json beside a finished search, unless it is there.

  Args:
    c: every setting; `describe` and `threads` are read.
    target: data set of the target training images.
    source: the pool that was searched.
    directory: of the search.
    mesh: this process's devices.
  """
  directory = paths.path(directory)
  if (directory / NAME).exists():
    return
  found = tables.read(directory / 'neighbours.parquet', target.ids, source.ids)
  describer = describe.load(
    directory / 'edges.npz',
    describe.load_bank(c.describe),
    mesh=mesh,
    batch=c.describe.batch,
    threads=c.threads,
  )
  value = explained(found, target, source, describer)
  files.write_json(directory / NAME, value)


def explained(found, target, source, describer) -> dict:
  """Nats of every filter for some pairs, and for usual ones.

  Args:
    found: `tables.Table`.
    target: data set.
    source: data set.
    describer: of the search.

  Returns:
    {'filters': names, 'layers': layer of each, 'pairs': rows}; a row holds
    target_id, source_id, rank (0 = nearest), distance and usual_distance
    (nats), and nats and usual, lists with a number per filter. For each of
    three target images the nearest source image, and that of rank 40.
  """
  searched = np.flatnonzero(found.index_qk[:, 0] >= 0)
  rows = searched[spread(target.labels[searched], TARGETS)]
  last_q = (found.index_qk >= 0).sum(axis=1) - 1
  ranks = {q: sorted({0, min(last_q[q], _FAR - 1)}) for q in rows.tolist()}
  wanted = [found.index_qk[q, r] for q in ranks for r in ranks[q]]
  evenly = np.linspace(0, len(source) - 1, min(_USUAL, len(source)))
  usual = np.unique(evenly.astype(int)).tolist()
  target_of = _counts(describer, target, ranks)
  source_of = _counts(describer, source, [*wanted, *usual])
  lost = [target.ids[q] for q in ranks if q not in target_of]
  lost += [source.ids[s] for s in wanted if s not in source_of]
  if lost:
    raise UserError(
      f'{lost[0]} was searched and cannot be read any more. Look after its '
      'disk, then give the same command again.'
    )
  # An image that cannot be read has no counts.
  among = [s for s in usual if s in source_of] or list(source_of)

  def nats(q, s):
    return contributions(target_of[q], source_of[s], describer).sum(axis=1)

  pairs = []
  for q in ranks:
    usual_c = np.mean([nats(q, s) for s in among], axis=0)
    for r in ranks[q]:
      s = int(found.index_qk[q, r])
      pairs.append(
        {
          'target_id': str(target.ids[q]),
          'source_id': str(source.ids[s]),
          'rank': int(r),
          'distance': float(found.distance_qk[q, r]),
          'usual_distance': float(usual_c.sum()),
          'nats': _digits(nats(q, s)),
          'usual': _digits(usual_c),
        }
      )
  bank = describer.bank
  return {
    'filters': list(bank.names),
    'layers': bank.layer_c.tolist(),
    'pairs': pairs,
  }


def _counts(describer, dataset, positions) -> dict:
  """Position -> counts int32 [d] of the images that can be read."""
  index_n = np.unique(list(positions)).astype(int)
  stream = streams.Described(describer, dataset.subset(index_n))
  block = stream.one_block()
  readable = index_n[block.index_n].tolist()
  return dict(zip(readable, block.counts_nd, strict=True))


def _digits(value_c) -> list[float]:
  return [float(f'{value:.4g}') for value in value_c]
