"""What `benchmarks.search` measures: this project's search and its peers.

Each is a function of (data, k, settings) that makes ready and returns the work
to be timed: a function without arguments, to (source positions [q, k] or None,
a note).
"""

import pathlib

import numpy as np

EPSILON = 2.2204e-16


class Data:
  """Counts, read into memory."""

  def __init__(self, path, images):
    path = pathlib.Path(path)
    self.target = np.load(path / 'target.npy')
    mapped = np.load(path / 'source.npy', mmap_mode='r')
    self.source = np.array(mapped[:images])
    with np.load(path / 'bins.npz') as stored:
      self.pixels_d, self.weight_d = stored['pixels'], stored['weight']

  def lifted(self, counts, dtype=np.float32):
    """(p, log(p + e)) of counts."""
    p = counts.astype(dtype) / self.pixels_d.astype(dtype)
    return p, np.log(p + dtype(EPSILON))


def ours(data, k, rank, operands):
  """This project's search."""
  from sjft_jax import describe, mesh, search, streams

  class Describer:
    pixels_d, weight_d = data.pixels_d, data.weight_d
    fractions = describe.Describer.fractions
    logs = describe.Describer.logs
    log_error = describe.Describer.log_error

  class Stream(streams.Described):
    def __init__(self, counts):
      self.counts, self.describer = counts, Describer()

    def __len__(self):
      return len(self.counts)

    def blocks(self, start, stop, rows):
      for at in range(start, stop, rows):
        part = self.counts[at : min(at + rows, stop)]
        yield describe.Block(
          index_n=np.arange(at, at + len(part)),
          counts_nd=part,
          stop=at + len(part),
          bad=[],
        )

  def find(counts):
    return search.nearest(
      Stream(data.target),
      Stream(counts),
      k=k,
      mesh=mesh.make(),
      rank=rank,
      operands=operands,
    )

  # Compiles; a whole shard, as programs depend on its length.
  _, shard = search._grid(*data.source.shape, 1, None)[0]
  find(data.source[: max(k + 2048, shard)])

  def work():
    found = find(data.source)
    evaluated = found.seen.evaluated_q.sum() / found.seen.good
    note = f'{found.screens[0][0]}, rank {found.screens[0][1]}; '
    note += f'{evaluated / len(data.target):.2%} of pairs in float64'
    return found.table.index_qk, note

  return work


def numpy_lift(data, k):
  """Lifted products in NumPy, argpartition of every block, one last merge."""
  a = (data.weight_d / 2).astype(np.float32)

  def work():
    p, log_p = data.lifted(data.target)
    self_q = (a * p * log_p).sum(axis=1)
    kept = []
    for start in range(0, len(data.source), 1024):
      q, log_q = data.lifted(data.source[start : start + 1024])
      distance = self_q[:, None] + (q * log_q) @ a
      distance -= (p * a) @ log_q.T + (log_p * a) @ q.T
      m = min(k, distance.shape[1])
      at = np.argpartition(distance, m - 1, axis=1)[:, :m]
      kept.append((np.take_along_axis(distance, at, axis=1), at + start))
    distance, index = (
      np.concatenate(x, axis=1) for x in zip(*kept, strict=True)
    )
    at = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, at, axis=1), ''

  return work


def torch_lift(data, k, dtype='float32'):
  """Lifted products and topk of every block in torch."""
  import torch

  dtype = getattr(torch, dtype)
  a = torch.from_numpy((data.weight_d / 2).astype(np.float32))

  def lift(counts):
    p = torch.from_numpy(counts.astype(np.float32))
    p /= torch.from_numpy(data.pixels_d.astype(np.float32))
    return p, torch.log(p + EPSILON)

  def work():
    p, log_p = lift(data.target)
    self_q = (a * p * log_p).sum(dim=1)
    p, log_p = (p * a).to(dtype), (log_p * a).to(dtype)
    kept = []
    for start in range(0, len(data.source), 4096):
      q, log_q = lift(data.source[start : start + 4096])
      self_s = (q * log_q) @ a
      cross = p @ log_q.to(dtype).T + log_p @ q.to(dtype).T
      distance = self_q[:, None] + self_s[None] - cross.float()
      found = torch.topk(distance, min(k, len(q)), dim=1, largest=False)
      kept.append((found.values, found.indices + start))
    distance, index = (torch.cat(x, dim=1) for x in zip(*kept, strict=True))
    at = torch.topk(distance, k, dim=1, largest=False).indices
    return torch.gather(index, 1, at).numpy(), ''

  return work


def faiss_flat(data, k):
  """IndexFlatIP over lifted vectors; blocks merged, as they would not fit."""
  import faiss

  a = (data.weight_d / 2).astype(np.float32)

  def work():
    p, log_p = data.lifted(data.target)
    query = np.concatenate([p * a, log_p * a, -np.ones((len(p), 1), 'f')], 1)
    kept = []
    step = 2**28 // data.source.shape[1]
    for start in range(0, len(data.source), step):
      q, log_q = data.lifted(data.source[start : start + step])
      self_s = (q * log_q) @ a
      index = faiss.IndexFlatIP(query.shape[1])
      index.add(np.concatenate([log_q, q, self_s[:, None]], 1))
      score, at = index.search(query, min(k, len(q)))
      kept.append((-score, at + start))
    distance, index = (
      np.concatenate(x, axis=1) for x in zip(*kept, strict=True)
    )
    at = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, at, axis=1), ''

  return work


def release(data, k):
  """The release's formula: every logarithm of every pair, float32."""
  del k
  e, w = np.float32(EPSILON), (data.weight_d / 2).astype(np.float32)

  def work():
    p, _ = data.lifted(data.target)
    q, _ = data.lifted(data.source)
    for t in p:
      ratio = np.log((t + e) / (q + e))
      ((t * ratio - q * ratio) * w).sum(axis=1)
    return None, ''

  return work


def scipy_entropy(data, k):
  """scipy.special.rel_entr, both ways."""
  del k
  from scipy.special import rel_entr

  w = data.weight_d / 2

  def work():
    p = data.target / data.pixels_d + EPSILON
    q = data.source / data.pixels_d + EPSILON
    for t in p:
      ((rel_entr(t, q) + rel_entr(q, t)) * w).sum(axis=1)
    return None, ''

  return work


def sklearn_metric(data, k):
  """scikit-learn's neighbours with a callable metric."""
  from sklearn.neighbors import NearestNeighbors

  w = data.weight_d / 2

  def metric(p, q):
    return np.dot(w * (p - q), np.log((p + EPSILON) / (q + EPSILON)))

  def work():
    found = NearestNeighbors(n_neighbors=k, algorithm='brute', metric=metric)
    found.fit(data.source / data.pixels_d)
    found.kneighbors(data.target / data.pixels_d)
    return None, ''

  return work


# name: (maker, settings, module that must be there, targets, images at most)
ROWS = {
  'sjft_jax': (ours, dict(rank=None, operands='auto'), 'jax', None, None),
  'sjft_jax, float32': (
    ours, dict(rank=None, operands='float32'), 'jax', None, None,
  ),
  'sjft_jax, float32, all bins': (
    ours, dict(rank=0, operands='float32'), 'jax', None, None,
  ),
  'sjft_jax, bfloat16, all bins': (
    ours, dict(rank=0, operands='bfloat16'), 'jax', None, None,
  ),
  'NumPy lift + argpartition': (numpy_lift, {}, 'numpy', None, None),
  'torch lift + topk': (torch_lift, {}, 'torch', None, None),
  'torch lift + topk, bfloat16': (
    torch_lift, dict(dtype='bfloat16'), 'torch', None, None,
  ),
  'faiss IndexFlatIP, lifted': (faiss_flat, {}, 'faiss', None, None),
  "release's formula, NumPy": (release, {}, 'numpy', 16, 1024),
  'scipy rel_entr': (scipy_entropy, {}, 'scipy', 8, 1024),
  'scikit-learn, callable metric': (
    sklearn_metric, {}, 'sklearn', 8, 1024,
  ),
}  # fmt: skip
