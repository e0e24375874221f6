"""Which source images stand behind every target image, round after round."""

import dataclasses
import pathlib

import numpy as np

from sjft_jax import files, intake, processes, progress, retrieval
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
    UserError: as `retrieval.find`, or if too many source images are
      unreadable; from the function, if `common` leaves a target image without
      candidates.
  """
  if c.selection == 'none':
    return lambda budget_q: None, pool
  index_qk, bad = None, {}
  if c.selection in SEARCHED:
    found = retrieval.find(
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
  if processes.first():
    files.write_json(pathlib.Path(workdir) / SOURCE_CLASSES, names)
  labels = relabelled[pool.labels]
  return draw, dataclasses.replace(pool, labels=labels, classes=names)


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
