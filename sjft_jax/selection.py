"""Which source images stand behind every target image, round after round."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import numpy as np

from sjft_jax import describe, files, intake, progress, search, tables
from sjft_jax.data.pipelines import Candidates
from sjft_jax.errors import UserError
from sjft_jax.ops import divergence


def stage(c, target, pool, workdir, mesh, donors):
  """Finds what the selection needs; returns how a budget becomes candidates.

  Args:
    c: every setting.
    target: data set of the target training images.
    pool: the source, or None where none is wanted.
    workdir: directory of the run.
    mesh: the devices.
    donors: directories of runs to take a finished search over from.

  Returns:
    Function of budget_q int [q] to `Candidates`; to None for no selection.

  Raises:
    UserError: as `find`, or if too many source images are unreadable.
  """
  if c.selection == 'none':
    return lambda budget_q: None
  index_qk, bad = None, {}
  if c.selection in SEARCHED:
    found = find(
      c,
      target,
      pool,
      workdir / 'selection',
      mesh=mesh,
      donors=[d / 'selection' for d in donors],
    )
    index_qk, bad = found.index_qk, found.unreadable
  else:
    with progress.bar(len(pool), 'check source') as bar:
      bad = intake.find_bad(pool, c.threads, bar)
  intake.report_bad(c, workdir, bad, len(pool))
  source_n = np.flatnonzero(~np.isin(pool.ids, list(bad)))
  rule = RULES[c.selection]
  return lambda budget_q: rule(index_qk, budget_q, source_n, c.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
  """The search's answer.

  index_qk: source positions, nearest first, int64 [q, k]; -1 where a row
    ends because too few source images are readable.
  unreadable: {source id: why} of the images that could not be decoded.
  """

  index_qk: np.ndarray
  unreadable: dict


def find(c, target, source, directory, *, mesh, donors=()) -> Neighbours:
  """Describes both sets and searches, or reads what an earlier start left.

  Args:
    c: every setting; `describe`, `budget.maximum` and `threads` are read.
    target: data set of the target training images.
    source: the pool.
    directory: where edges.npz, neighbours.parquet and certificate.json go.
    mesh: the devices.
    donors: directories of finished searches; one of the same data and
      settings is copied instead of searching again.

  Returns:
    The neighbours of every target image, nearest first.

  Raises:
    UserError: if the source is smaller than the depth of the search.
  """
  directory = pathlib.Path(directory)
  if not 0 < c.budget.initial <= c.budget.maximum <= len(source):
    raise UserError(
      'Needed 0 < budget.initial <= budget.maximum <= images in the source; '
      f'came {c.budget.initial}, {c.budget.maximum}, {len(source)}. Lower the '
      'budget or give a larger source.'
    )
  key = _key(c, target, source)
  certificate = directory / 'certificate.json'
  for donor in map(pathlib.Path, donors):
    theirs = donor / 'certificate.json'
    if directory.exists() or not theirs.exists():
      continue
    if files.read_json(theirs)['key'] == key:
      with files.building(directory) as beside:
        shutil.copytree(donor, beside)
  if not certificate.exists():
    _search(c, target, source, directory, key, mesh)
  found = tables.read(directory / 'neighbours.parquet', target.ids, source.ids)
  return Neighbours(
    index_qk=found.index_qk,
    unreadable=files.read_json(certificate)['unreadable'],
  )


def _search(c, target, source, directory, key, mesh):
  bank = describe.load_bank(c.describe)
  run_on = dict(mesh=mesh, batch=c.describe.batch, threads=c.threads)
  edges = directory / 'edges.npz'
  if edges.exists():
    describer = describe.load(edges, bank, **run_on)
  else:
    describer = describe.fit(
      bank,
      target,
      bins=c.describe.bins,
      binning=c.describe.binning,
      **run_on,
    )
    describer.save(edges)
  shards = directory / 'shards'
  found = search.nearest(
    describer, target, source, k=c.budget.maximum, mesh=mesh, directory=shards
  )
  neighbours = directory / 'neighbours.parquet'
  tables.write(neighbours, found.table, target.ids, source.ids)
  files.write_json(
    directory / 'certificate.json',
    {
      'key': key,
      'epsilon': divergence.EPSILON,
      'dimensions': len(describer.weight_d),
      'source_images': len(source),
      'source_images_seen': found.seen.images,
      'screen_error_bound_nats': found.seen.bound,
      'pairs': found.seen.good * len(target),
      'pairs_evaluated_in_float64': found.seen.evaluated,
      'neighbours_sha256': hashlib.sha256(neighbours.read_bytes()).hexdigest(),
      'unreadable': {
        source.ids[i]: str(reason) for i, reason in found.bad.items()
      },
    },
  )
  shutil.rmtree(shards)


def _key(c, target, source):
  """Digest of all that the neighbours depend on."""
  parts = [target.digest, source.digest, c.budget.maximum]
  parts.append({k: v for k, v in c.describe.items() if k != 'batch'})
  if c.describe.weights:
    weights = pathlib.Path(c.describe.weights).read_bytes()
    parts.append(hashlib.sha256(weights).hexdigest())
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def neighbours(index_qk, budget_q, source_n, seed):
  """Of every target image, its nearest K."""
  del source_n, seed
  start_q = np.arange(len(index_qk), dtype=np.int64) * index_qk.shape[1]
  # A row ends early when most of a small source is unreadable.
  length_q = np.minimum(budget_q, (index_qk >= 0).sum(axis=1))
  return Candidates(
    # Places past the end of a row are never drawn, but must be positions.
    index=np.maximum(index_qk, 0).ravel(),
    start=start_q,
    stop=start_q + length_q,
  )


def random(index_qk, budget_q, source_n, seed):
  """The same random source images for all: as many as the nearest would be."""
  many = len(selected(neighbours(index_qk, budget_q, source_n, seed)))
  # One order for all rounds: a larger budget keeps the images it had.
  order = np.random.default_rng(seed).permutation(source_n)
  return _shared(order[:many], budget_q)


def everything(index_qk, budget_q, source_n, seed):
  """The whole source for all."""
  del index_qk, seed
  return _shared(source_n, budget_q)


def _shared(index_n, budget_q):
  start_q = np.zeros(len(budget_q), np.int64)
  return Candidates(index=index_n, start=start_q, stop=start_q + len(index_n))


# (index_qk, budget_q, readable source positions, seed) -> Candidates.
RULES = {
  'neighbours': neighbours,
  'random': random,
  'all': everything,
  'none': None,
}
# These need the search; the others never read a descriptor.
SEARCHED = ('neighbours', 'random')


def selected(candidates) -> np.ndarray:
  """The distinct source positions that can be drawn, ascending."""
  mask = np.zeros(candidates.index.max(initial=-1) + 1, bool)
  ranges = np.stack([candidates.start, candidates.stop], axis=1)
  for start, stop in np.unique(ranges, axis=0):
    mask[candidates.index[start:stop]] = True
  return np.flatnonzero(mask)
