"""Which source images stand behind every target image, round after round."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from sjft_jax import (
  certificate,
  describe,
  files,
  guard,
  intake,
  progress,
  reuse,
  search,
  streams,
  tables,
)
from sjft_jax import mesh as meshes
from sjft_jax.data import datasets
from sjft_jax.data.datasets import Dataset
from sjft_jax.data.pipelines import Candidates
from sjft_jax.errors import UserError

# Names of the classes of the source head, where rare ones were dropped.
SOURCE_CLASSES = 'selection/source_classes.json'


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
    (function of budget_q int [q] to `Candidates`, to None for no selection;
    the pool to draw them from, with the labels that the source head learns).

  Raises:
    UserError: as `find`, or if too many source images are unreadable; from the
      function, if `common` leaves a target image without candidates.
  """
  if c.selection == 'none':
    return lambda budget_q: None, pool
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
  rule, least = RULES[c.selection], c.budget.least_per_class

  def draw(budget_q):
    candidates = rule(index_qk, budget_q, source_n, c.seed)
    return common(candidates, pool.labels, least, target.ids)

  if least < 2:
    return draw, pool
  # No round can reach more images than the deepest lists hold.
  deepest = draw(np.full(len(target), c.budget.maximum))
  kept = np.unique(pool.labels[selected(deepest)])
  relabelled = np.full(len(pool.classes), -1, pool.labels.dtype)
  relabelled[kept] = np.arange(len(kept))
  names = tuple(pool.classes[i] for i in kept)
  files.write_json(pathlib.Path(workdir) / SOURCE_CLASSES, names)
  labels = relabelled[pool.labels]
  return draw, dataclasses.replace(pool, labels=labels, classes=names)


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
  first = meshes.share()[0] == 0
  if not 0 < c.budget.initial <= c.budget.maximum <= len(source):
    raise UserError(
      'Needed 0 < budget.initial <= budget.maximum <= images in the source; '
      f'came {c.budget.initial}, {c.budget.maximum}, {len(source)}. Lower the '
      'budget or give a larger source.'
    )
  key = _key(c, target, source)
  finished = directory / certificate.NAME
  for donor in map(pathlib.Path, donors if first else ()):
    theirs = donor / certificate.NAME
    if directory.exists() or not theirs.exists():
      continue
    if files.read_json(theirs)['key'] == key:
      with files.building(directory) as beside:
        shutil.copytree(donor, beside)
  if not finished.exists():
    _search(c, target, source, directory, key, meshes.own(mesh))
  files.wait_for(finished)
  found = tables.read(directory / 'neighbours.parquet', target.ids, source.ids)
  return Neighbours(
    index_qk=found.index_qk,
    unreadable=files.read_json(finished)['unreadable'],
  )


def _search(c, target, source, directory, key, mesh):
  """This process's share of the search; the first process writes the files."""
  fine = _open_fine(c, source, mesh) if c.describe.fine_bins else None
  describer = open_describer(c, directory, mesh, fit_on=target, fine=fine)
  described = streams.Described(describer, target)
  kept = fine or describer
  stream = streams.Described(kept, source)
  if c.search.cache:
    stream = streams.Cached(
      kept, source, c.search.cache, _cache_key(c, kept, source)
    )
  if fine:
    stream = reuse.Merged(stream, describer)
  shards = directory / 'shards'
  index, _ = share = meshes.share()
  found = search.nearest(
    described,
    stream,
    k=c.budget.maximum,
    mesh=mesh,
    directory=shards,
    share=share,
    rank=None if c.search.rank < 0 else c.search.rank,
    operands=c.search.operands,
  )
  waited = kept.waited
  print(
    f'The search waited {waited["images"]:.1f} s for images to be decoded and '
    f'{waited["devices"]:.1f} s for their histograms.'
  )
  if index == 0:
    tables.write(
      directory / 'neighbours.parquet', found.table, target.ids, source.ids
    )
    certificate.write(
      directory,
      key=key,
      found=found,
      describer=describer,
      target=target,
      source=source,
    )
  search.clear(shards, share)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Search:
  """A finished search, opened again.

  settings: of its run.
  target, source: the data sets, as they were searched.
  describer: that described both.
  table: of the neighbours.
  certificate: that vouches for them.
  """

  settings: ConfigDict
  target: Dataset
  source: Dataset
  describer: describe.Describer
  table: tables.Table
  certificate: dict


def reopen(workdir, mesh) -> Search:
  """The finished search of a run.

  Args:
    workdir: directory of the run.
    mesh: the devices.

  Raises:
    UserError: if there is none, or files or images are not as they were.
  """
  workdir = pathlib.Path(workdir)
  directory = workdir / 'selection'
  stored = certificate.read(directory)
  c = ConfigDict(files.read_json(workdir / 'config.json')['settings'])
  target, _ = datasets.open_target(c.target, c.seed, testing=False)
  source = guard.remaining(datasets.open_pool(c.source), workdir)
  rows = pq.read_table(directory / 'neighbours.parquet', columns=['target_id'])
  searched = set(rows['target_id'].to_pylist())
  target = target.subset(
    [i for i, name in enumerate(target.ids.tolist()) if name in searched]
  )
  if _key(c, target, source) != stored['key']:
    raise UserError(
      f'The images or filter weights are not those of the search in '
      f'{directory}. Restore them, or choose another --workdir.'
    )
  return Search(
    settings=c,
    target=target,
    source=source,
    describer=open_describer(c, directory, mesh),
    table=tables.read(directory / 'neighbours.parquet', target.ids, source.ids),
    certificate=stored,
  )


def _open_fine(c, source, mesh):
  """The describer of the source's fine bins, kept in the cache."""
  if not c.search.cache:
    raise UserError(
      'describe.fine_bins keeps the source for later targets, and needs '
      'search.cache: set --config.search.cache=DIR.'
    )
  bank = describe.load_bank(c.describe)
  run_on = dict(mesh=mesh, batch=c.describe.batch, threads=c.threads)
  key = _digest([source.digest, c.describe.fine_bins, *_bank_parts(c)])
  edges = pathlib.Path(c.search.cache).expanduser() / f'{key}.edges.npz'
  if edges.exists():
    return describe.load(edges, bank, **run_on)
  fine = reuse.fit_fine(bank, source, bins=c.describe.fine_bins, **run_on)
  fine.save(edges)
  return fine


def open_describer(c, directory, mesh, fit_on=None, fine=None):
  """The describer of a search, from its edges or newly fitted.

  Args:
    c: every setting; `describe` and `threads` are read.
    directory: of the search; edges.npz lies there, or is written there.
    mesh: the devices.
    fit_on: data set of the target training images, where there are no edges.
    fine: describer among whose edges new ones are chosen; None for any.

  Raises:
    UserError: if describe.edges names a file that does not fit the bank.
  """
  bank = describe.load_bank(c.describe)
  run_on = dict(mesh=mesh, batch=c.describe.batch, threads=c.threads)
  edges = directory / 'edges.npz'
  if edges.exists():
    return describe.load(edges, bank, **run_on)
  if c.describe.edges:
    describer = _given_edges(c, bank, run_on)
  else:
    describer = describe.fit(
      bank,
      fit_on,
      bins=c.describe.bins,
      binning=c.describe.binning,
      **run_on,
    )
  if fine:
    describer = reuse.snap(describer, fine)
  describer.save(edges)
  return describer


def _given_edges(c, bank, run_on):
  needed = len(bank.layer_c), c.describe.bins
  try:
    describer = describe.load(c.describe.edges, bank, **run_on)
    came = len(describer.edges_cb), describer.bins
  except (OSError, ValueError, KeyError, IndexError) as error:
    raise UserError(
      f'describe.edges needs an edges.npz of another run; {c.describe.edges} '
      f'could not be read: {error}'
    ) from error
  if came != needed:
    raise UserError(
      f'describe.edges needs edges of {needed[0]} channels and {needed[1]} '
      f'bins; {c.describe.edges} has {came[0]} and {came[1]}. Take those of a '
      'run with the same describe settings.'
    )
  return describer


def _key(c, target, source):
  """Digest of all that the neighbours depend on."""
  binning = [c.describe[k] for k in _BINNING]
  parts = [target.digest, source.digest, c.budget.maximum, *_bank_parts(c)]
  parts.append(binning)
  if c.describe.edges:
    parts.append(_file_digest(c.describe.edges))
  return _digest(parts)


def _cache_key(c, describer, source):
  """Digest of all that the source's counts depend on; the bins are edges."""
  edges = np.ascontiguousarray(describer.edges_cb, '<f4').tobytes()
  parts = [source.digest, hashlib.sha256(edges).hexdigest(), *_bank_parts(c)]
  return _digest(parts)


# What the edges depend on besides bank and images.
_BINNING = ('bins', 'binning', 'fine_bins')


def _bank_parts(c):
  free = (*_BINNING, 'batch', 'edges', 'weights')
  parts = [{k: v for k, v in c.describe.items() if k not in free}]
  if c.describe.weights:
    parts.append(_file_digest(c.describe.weights))
  return parts


def _file_digest(path):
  try:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _digest(parts):
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


def common(candidates, label_n, least, target_ids):
  """Candidates of the source classes with enough images among all of them.

  Args:
    candidates: of every target image.
    label_n: class of every source image, int [n].
    least: distinct candidates that a class must have to be kept.
    target_ids: unicode [q].

  Returns:
    `Candidates` without those of rarer classes, in the same order.

  Raises:
    UserError: if a target image is left without any.

  Source: least_sample_per_class of the release.
  """
  of = ''
  if least > 1:
    candidates = _without_rare(candidates, label_n, least)
    of = f' in a source class of {least} selected images or more'
  bare = np.flatnonzero(candidates.start >= candidates.stop)
  if bare.size:
    raise UserError(
      f'Every target image needs a neighbour{of}; {target_ids[bare[0]]} has '
      f'none, of {len(bare)} target image{"s" if len(bare) > 1 else ""}. Raise '
      'budget.initial, lower budget.least_per_class, or give a larger source.'
    )
  return candidates


def _without_rare(candidates, label_n, least):
  """Candidates of classes that have at least so many of the distinct ones."""
  count = np.bincount(
    label_n[selected(candidates)], minlength=label_n.max() + 1
  )
  kept_m = (count >= least)[label_n[candidates.index]]
  before = np.concatenate([[0], np.cumsum(kept_m)])
  return Candidates(
    index=candidates.index[kept_m],
    start=before[candidates.start],
    stop=before[candidates.stop],
  )


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
