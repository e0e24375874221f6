"""Which source images stand behind every target image, round after round."""

import dataclasses
from collections.abc import Callable

import numpy as np

from sjft_jax import (
  certificate,
  features,
  files,
  intake,
  paths,
  processes,
  progress,
  retrieval,
)
from sjft_jax.data import bad_images
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
      unreadable; from the function, if `without_rare_classes` leaves a target
      image without candidates.
  """
  if c.selection == 'none':
    return lambda budget_q: None, pool
  index_qk, bad = None, {}
  directory = paths.path(workdir) / 'selection'
  theirs = [d / 'selection' for d in donors]
  if c.selection == 'features':
    index_qk, bad = features.find(
      c, target, pool, directory, mesh=mesh, donors=theirs
    )
  elif RULES[c.selection].searched:
    found = retrieval.find(c, target, pool, directory, mesh=mesh, donors=theirs)
    index_qk, bad = found.index_qk, found.unreadable
  else:
    with progress.bar(len(pool), 'check source') as bar:
      bad = intake.find_bad(pool, c.threads, bar)
  intake.report_bad(c, workdir, bad, len(pool))
  found = what_was_found(c, target, pool, index_qk, bad)
  rule, least = RULES[c.selection], c.budget.least_per_class

  def draw(budget_q):
    return drawn(c, found, target.ids, budget_q)

  if least < 2:
    # A search that was taken over may have brought another arm's.
    if processes.first():
      (paths.path(workdir) / SOURCE_CLASSES).unlink(missing_ok=True)
    return draw, pool
  # No round can reach more images than these.
  widest = (rule.widest or rule.choose)(
    dataclasses.replace(found, images=0),
    np.full(len(target), c.budget.maximum),
  )
  widest = without_rare_classes(widest, pool.labels, least, target.ids)
  kept = np.unique(pool.labels[selected(widest)])
  relabelled = np.full(len(pool.classes), -1, pool.labels.dtype)
  relabelled[kept] = np.arange(len(kept))
  names = tuple(pool.classes[i] for i in kept)
  if processes.first():
    files.write_json(paths.path(workdir) / SOURCE_CLASSES, names)
  labels = relabelled[pool.labels]
  return draw, dataclasses.replace(pool, labels=labels, classes=names)


def again(c, workdir, target, pool, index_qk, budget_q):
  """What a run's target images drew from at a budget, by the files it left.

  Args:
    c: every setting of the run.
    workdir: its directory.
    target: data set of the target training images, as it was searched.
    pool: the source, as it was searched.
    index_qk: as in `Found`, but as deep as the search was.
    budget_q: K of every target image, int [q].

  Returns:
    (`Found`, `Candidates`).

  Raises:
    UserError: as `drawn`.
  """
  workdir = paths.path(workdir)
  bad = bad_images.read(workdir / 'bad_images.csv')
  if index_qk is not None:
    mark = RULES[c.selection].mark
    stored = files.read_json(workdir / 'selection' / mark, {})
    bad = stored.get('unreadable', ())
  found = what_was_found(c, target, pool, index_qk, bad)
  return found, drawn(c, found, target.ids, budget_q)


def what_was_found(c, target, pool, index_qk, bad):
  """What the rules choose by.

  Args:
    c: every setting.
    target: data set of the target training images.
    pool: the source.
    index_qk: as in `Found`.
    bad: ids of unreadable source images.
  """
  if index_qk is not None:
    # A deeper search than the cap on K changes nothing.
    index_qk = index_qk[:, : c.budget.maximum]
  return Found(
    index_qk=index_qk,
    label_q=target.labels,
    label_n=pool.labels,
    source_n=np.flatnonzero(~np.isin(pool.ids, list(bad))),
    images=c.budget.images,
    seed=c.seed,
  )


def drawn(c, found, target_ids, budget_q):
  """What every target image may draw at a budget.

  Args:
    c: every setting; `selection` and `budget.least_per_class` are read.
    found: `Found`.
    target_ids: unicode [q].
    budget_q: K of every target image, int [q].

  Returns:
    `Candidates`.

  Raises:
    UserError: if a target image has none.
  """
  chosen = RULES[c.selection].choose(found, budget_q)
  return without_rare_classes(
    chosen, found.label_n, c.budget.least_per_class, target_ids
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a rule may choose by.

  index_qk: source positions, nearest first, int64 [q, k]; -1 where a row ends;
    None without a search.
  label_q, label_n: classes of the target and of the source images.
  source_n: readable source positions, ascending.
  images: N, how many source images to select; 0 = as K has it.
  seed: of random choices.
  """

  index_qk: np.ndarray | None
  label_q: np.ndarray
  label_n: np.ndarray
  source_n: np.ndarray
  images: int
  seed: int


def neighbours(found, budget_q):
  """Of every target image, its nearest K; or N in all, in proportion to K."""
  index_qk = found.index_qk
  start_q = np.arange(len(index_qk), dtype=np.int64) * index_qk.shape[1]
  # A row ends early when most of a small source is unreadable.
  length_q = np.minimum(budget_q, (index_qk >= 0).sum(axis=1))
  if found.images:
    length_q = _lengths(index_qk, budget_q, found.images)
  return Candidates(
    # Places past the end of a row are never drawn, but must be positions.
    index=np.maximum(index_qk, 0).ravel(),
    start=start_q,
    stop=start_q + length_q,
  )


def _lengths(index_qk, budget_q, images):
  """How far into each row to go for so many distinct images, int [q].

  The nearest of every target image first; then rank r of image i in the order
  of r / K_i, so that an image of twice the K goes twice as deep.
  """
  there_qk = index_qk >= 0
  rank_qk = np.broadcast_to(np.arange(index_qk.shape[1]), index_qk.shape)
  depth_qk = rank_qk / np.asarray(budget_q)[:, None]
  row_n, at_n = np.nonzero(there_qk)
  order = np.lexsort((row_n, depth_qk[row_n, at_n]))
  row_n, index_n = row_n[order], index_qk[row_n[order], at_n[order]]
  _, first = np.unique(index_n, return_index=True)
  new_n = np.zeros(len(index_n), bool)
  new_n[first] = True
  seen_n = np.cumsum(new_n)
  covering = int(there_qk[:, 0].sum())
  least, most = (
    int(seen_n[i - 1]) if i else 0 for i in (covering, len(seen_n))
  )
  if not least <= images <= most:
    raise UserError(
      f'budget.images must be {least} (the nearest of every target image) to '
      f'{most} (all that were found); came {images}. Change it, or raise '
      'budget.maximum.'
    )
  taken = max(int(np.searchsorted(seen_n, images)) + 1, covering)
  return np.bincount(row_n[:taken], minlength=len(index_qk))


def labelled(found, budget_q):
  """Of every target image, the K that its class has most in common.

  A source image counts once for every image of the class among whose nearest K
  it is; ties go to the better rank among them, then to the lower position.
  """
  nearest, lists = neighbours(found, budget_q), []
  length_q = nearest.stop - nearest.start
  by_class = {}
  for label in np.unique(found.label_q):
    mine = np.flatnonzero(found.label_q == label)
    spans = [np.arange(nearest.start[q], nearest.stop[q]) for q in mine]
    index_n = nearest.index[np.concatenate(spans)]
    rank_n = np.concatenate([np.arange(len(span)) for span in spans])
    position_m, inverse_n, votes_m = np.unique(
      index_n, return_inverse=True, return_counts=True
    )
    rank_m = np.full(len(position_m), np.iinfo(np.int64).max)
    np.minimum.at(rank_m, inverse_n, rank_n)
    by_class[label] = position_m[np.lexsort((position_m, rank_m, -votes_m))]
  for label, length in zip(found.label_q, length_q, strict=True):
    lists.append(by_class[label][:length])
  stop_q = np.cumsum([len(chosen) for chosen in lists])
  return Candidates(
    index=np.concatenate(lists),
    start=stop_q - [len(chosen) for chosen in lists],
    stop=stop_q,
  )


def classes(found, budget_q):
  """Whole source classes for all: as many images as the nearest would be.

  The classes come by the share of their images that are among the nearest,
  ties to the lower label, until there are no fewer images.
  """
  near = selected(neighbours(found, budget_q))
  label_n = found.label_n
  held_c = np.bincount(label_n[found.source_n], minlength=label_n.max() + 1)
  near_c = np.bincount(label_n[near], minlength=len(held_c))
  order = np.argsort(-near_c / np.maximum(held_c, 1), kind='stable')
  enough = int(np.searchsorted(np.cumsum(held_c[order]), len(near))) + 1
  chosen = np.isin(label_n[found.source_n], order[:enough])
  return _shared(found.source_n[chosen], budget_q)


def random(found, budget_q):
  """The same random source images for all: as many as the nearest would be."""
  many = len(selected(neighbours(found, budget_q)))
  # One order for all rounds: a larger budget keeps the images it had.
  order = np.random.default_rng(found.seed).permutation(found.source_n)
  return _shared(order[:many], budget_q)


def everything(found, budget_q):
  """The whole source for all."""
  return _shared(found.source_n, budget_q)


def _shared(index_n, budget_q):
  start_q = np.zeros(len(budget_q), np.int64)
  return Candidates(index=index_n, start=start_q, stop=start_q + len(index_n))


def without_rare_classes(candidates, label_n, least, target_ids):
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
    count = np.bincount(
      label_n[selected(candidates)], minlength=label_n.max() + 1
    )
    kept_m = (count >= least)[label_n[candidates.index]]
    before = np.concatenate([[0], np.cumsum(kept_m)])
    candidates = Candidates(
      index=candidates.index[kept_m],
      start=before[candidates.start],
      stop=before[candidates.stop],
    )
    of = f' in a source class of {least} selected images or more'
  bare = np.flatnonzero(candidates.start >= candidates.stop)
  if bare.size:
    raise UserError(
      f'Every target image needs a neighbour{of}; {target_ids[bare[0]]} has '
      f'none, of {len(bare)} target image{"s" if len(bare) > 1 else ""}. Raise '
      'budget.initial, lower budget.least_per_class, or give a larger source.'
    )
  return candidates


_MARKS = {'descriptors': certificate.NAME, 'features': features.NAME}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What a value of the setting `selection` means.

  choose: (`Found`, budget_q int [q]) -> `Candidates`; None: no source image.
  widest: likewise, of all that `choose` can choose at any K; None: what it
    chooses at the largest.
  searched: by what nearest images are searched, 'descriptors' or 'features';
    '': there is no search.
  counted: whether budget.images may say how many images are chosen.
  shared: whether all target images draw from the same list.
  """

  choose: Callable[[Found, np.ndarray], Candidates] | None = None
  widest: Callable[[Found, np.ndarray], Candidates] | None = None
  searched: str = ''
  counted: bool = False
  shared: bool = False

  @property
  def mark(self) -> str:
    """The file of selection/ that a finished search leaves; '' without one."""
    return _MARKS.get(self.searched, '')


RULES = {
  'neighbours': Rule(choose=neighbours, searched='descriptors', counted=True),
  'features': Rule(choose=neighbours, searched='features', counted=True),
  'labelled': Rule(choose=labelled, widest=neighbours, searched='descriptors'),
  'classes': Rule(
    choose=classes,
    widest=everything,
    searched='descriptors',
    counted=True,
    shared=True,
  ),
  'random': Rule(
    choose=random, searched='descriptors', counted=True, shared=True
  ),
  'all': Rule(choose=everything, shared=True),
  # Has no images to count, and so nothing to refuse.
  'none': Rule(counted=True),
}


def uses_k(settings) -> bool:
  """Whether K decides what a run trains on.

  Args:
    settings: of its config.json; those it lacks are as by default.
  """
  if settings.get('train', {}).get('by_hardness'):
    return True  # It decides how often an image comes.
  images = settings.get('budget', {}).get('images', 0)
  name = settings.get('selection', 'neighbours')
  # Random images are as many as K makes them, or as many as are asked for.
  return bool(RULES[name].searched) and not (name == 'random' and images)


def selected(candidates) -> np.ndarray:
  """The distinct source positions that can be drawn, ascending."""
  mask = np.zeros(candidates.index.max(initial=-1) + 1, bool)
  ranges = np.stack([candidates.start, candidates.stop], axis=1)
  for start, stop in np.unique(ranges, axis=0):
    mask[candidates.index[start:stop]] = True
  return np.flatnonzero(mask)
