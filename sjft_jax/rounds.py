"""The whole method: search once, then train and re-weight, round by round."""

import csv
import functools

import numpy as np
from ml_collections import ConfigDict

from sjft_jax import (
  describe,
  evaluate,
  exact,
  files,
  guard,
  intake,
  learn,
  paths,
  processes,
  reasons,
  screen,
  selection,
  suspects,
  workdirs,
)
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError
from sjft_jax.models import weight_files
from sjft_jax.ops import hardness
from sjft_jax.report import pages

# Where the network lies that stands for those of all rounds.
DISTILLED = 'distilled'


def run(c, workdir, mesh, donors=()):
  """Selective joint fine-tuning of one target set.

  Every stage leaves its result in `workdir` and is skipped when it is there;
  a killed run ends as an uninterrupted one. Of several processes, all go
  through all stages; the first one looks at files and writes them.

  Args:
    c: every setting.
    workdir: where the run leaves itself.
    mesh: the devices.
    donors: directories of runs whose search and pretraining are taken over
      where data and settings are the same.

  Returns:
    What results.json holds.

  Raises:
    UserError: for settings or images that do not fit together.
  """
  workdir = paths.path(workdir)
  page = workdir / 'report' / 'index.html'

  def is_finished():
    workdirs.claim(workdir, c.to_dict())
    return page.exists()

  if processes.told(is_finished):
    return files.read_json(workdir / 'results.json')
  clock = workdirs.Clock(workdir)
  with clock('check images'):
    target, test, pool = intake.load(c, workdir)
  _check(c, target, test, mesh, workdir)
  with clock('guard'):
    pool = guard.withhold(c, target, test, pool, workdir, donors)
  with clock('search'):
    candidates, drawable = selection.stage(
      c, target, pool, workdir, mesh, donors
    )
  source_classes = len(drawable.classes) if pool else 0
  learner = learn.Learner(c, len(target.classes), source_classes, mesh, workdir)
  weights = None
  if c.rounds:
    guard.require(workdir, target, test, pool)
    with clock('pretrain'):
      weights = learner.start(pool, workdir / 'pretrain', donors)
  budget_q = np.full(len(target), c.budget.initial)
  summaries, tests, settled = [], [], False
  for m in range(c.rounds):
    if settled and c.end_when_settled:
      break
    directory = workdir / 'rounds' / str(m)
    drawn = candidates(budget_q)
    level_q = budget_q // c.budget.initial if c.train.by_hardness else None
    with clock('train'):
      weights = learner.fine_tune(
        weights, target, drawable, drawn, level_q, m, directory
      )
    with clock('evaluate'):
      kept = _answers(directory)
      posterior_qc, test_nc = kept or (
        learner.posteriors(weights, target, c.hardness.views, 'posteriors'),
        learner.posteriors(weights, test, c.evaluate.views, 'test'),
      )
      tests.append(test_nc)
    next_q = _end_round(
      c, directory, budget_q, posterior_qc, tests[-1], target, test
    )
    summaries.append(
      _summary(m, budget_q, next_q, posterior_qc, tests[-1], target, test)
      | _borrowed(pool, drawn)
    )
    settled, budget_q = (next_q == budget_q).all(), next_q
  results = {'rounds': summaries, 'seconds': clock.seconds}
  if c.rounds:
    results |= _fusions(c, learner, workdir, summaries, tests, test)
  else:
    results['selection'] = _borrowed(pool, candidates(budget_q))
  if c.rounds and c.distill.steps:
    with clock('distill'):
      results['distilled'] = _distilled(
        c, learner, weights, target, drawable, drawn, test, workdir, summaries
      )
  results['guard'] = guard.exposure(c, workdir, test, tests)
  asked = c.suspects.neighbours and c.selection == 'neighbours'
  if c.rounds and asked and learn.teaches(c):
    with clock('suspects'):
      results['label_suspects'] = suspects.stage(
        c, learner, weights, drawable, selection.selected(drawn), workdir
      )

  def finish():
    if c.selection == 'neighbours':
      reasons.stage(c, target, pool, workdir / 'selection', meshes.own(mesh))
    files.write_json(workdir / 'results.json', results | workdirs.provenance())
    pages.write_run(workdir, target, pool)

  processes.told(finish)
  return results


def _check(c, target, test, mesh, workdir):
  """Refuses what the target, the devices or the network cannot do."""
  exact.cpu()
  screen.grid(meshes.own(mesh), c.search.target_parts)
  check_files(c)
  if c.rounds:
    learn.check(c, mesh, workdir)
  if c.rounds and len(target) < c.train.target_batch:
    raise UserError(
      f'A batch takes train.target_batch={c.train.target_batch} different '
      f'target images; there are {len(target)}. Lower it and '
      'train.source_batch to the same number, or add images.'
    )
  if c.rounds and len(target.classes) < 2:
    raise UserError(
      f'The target needs two classes or more; there is {target.classes[0]} '
      'alone. target.train is the folder that holds the class folders.'
    )
  classes, most = len(np.unique(target.labels)), c.train.most_per_label
  if c.rounds and 0 < most * classes < c.train.target_batch:
    raise UserError(
      f'train.most_per_label={most} images of each of {classes} classes do not '
      f'fill train.target_batch={c.train.target_batch}. Lower that, or raise '
      'train.most_per_label.'
    )
  fewest = min(len(target), len(test) if c.rounds else len(target))
  if fewest < processes.count():
    raise UserError(
      f'Every process reads a share of the target images; {fewest} are too few '
      f'for {processes.count()} processes. Start fewer.'
    )
  batches = {}
  if c.rounds:
    batches['train.target_batch'] = c.train.target_batch
    if c.selection != 'none':
      batches['train.source_batch'] = c.train.source_batch
    if c.pretrain.steps:
      batches['pretrain.batch'] = c.pretrain.batch
  for name, images in batches.items():
    if images % mesh.size:
      raise UserError(
        f'{name} must be a multiple of the number of devices, {mesh.size}; '
        f'came {images}.'
      )


def check_files(c):
  """Refuses descriptors and weights that cannot be read."""
  if c.selection in selection.SEARCHED:
    describe.load_bank(c.describe)
    if c.describe.edges:
      files.digest(c.describe.edges)
  if c.rounds and c.model.weights:
    weight_files.convention(c.model.weights)


def _end_round(c, directory, budget_q, posterior_qc, test_nc, target, test):
  """Has what a round found out written; returns the next round's K."""
  next_q = np.asarray(
    hardness.next_budget(
      budget_q,
      posterior_qc,
      target.labels,
      add_wrong=round(c.hardness.add_wrong * c.budget.initial),
      add_unsure=round(c.hardness.add_unsure * c.budget.initial),
      min_entropy=c.hardness.min_entropy,
      maximum=c.budget.maximum,
    )
  )
  # One that is there may be read by others just now.
  if processes.first() and not (directory / 'budget.csv').exists():
    _write_round(
      directory, budget_q, next_q, posterior_qc, test_nc, target, test
    )
  return next_q


def _answers(directory):
  """(training, test) probabilities that a finished round left, or None."""
  # The file that is written last.
  if not processes.told((directory / 'budget.csv').exists):
    return None
  with (
    files.opened(directory / 'posteriors.npz') as file,
    np.load(file, allow_pickle=False) as kept,
  ):
    return kept['train_probability'], kept['test_probability']


def _write_round(
  directory, budget_q, next_q, posterior_qc, test_nc, target, test
):
  with files.replacing(directory / 'posteriors.npz') as file:
    np.savez_compressed(
      file,
      train_id=target.ids,
      train_label=target.labels,
      train_probability=posterior_qc,
      test_id=test.ids,
      test_label=test.labels,
      test_probability=test_nc,
    )
  with files.replacing(directory / 'confusion.csv', 'w') as file:
    writer = csv.writer(file)
    writer.writerow(('true class', *target.classes))
    counts_cc = evaluate.confusion(test_nc, test.labels).tolist()
    writer.writerows(
      (name, *row) for name, row in zip(target.classes, counts_cc, strict=True)
    )
  entropy_q = np.asarray(hardness.entropy(posterior_qc))
  correct_q = posterior_qc.argmax(axis=1) == target.labels
  with files.replacing(directory / 'budget.csv', 'w') as file:
    writer = csv.writer(file)
    writer.writerow(('target_id', 'entropy', 'correct', 'k', 'next_k'))
    writer.writerows(
      (name, f'{entropy:.6g}', int(correct), k, next_k)
      for name, entropy, correct, k, next_k in zip(
        target.ids, entropy_q, correct_q, budget_q, next_q, strict=True
      )
    )


def _summary(m, budget_q, next_q, posterior_qc, test_nc, target, test):
  return {
    'round': m,
    **_worth(test_nc, test.labels),
    'train_accuracy': evaluate.mean_class_accuracy(posterior_qc, target.labels),
    'mean_k': float(np.mean(budget_q)),
    'changed_k': int((next_q != budget_q).sum()),
  }


def _worth(probability_nc, label_n):
  return {
    'mean_class_accuracy': evaluate.mean_class_accuracy(
      probability_nc, label_n
    ),
    'accuracy': evaluate.accuracy(probability_nc, label_n),
    'calibration_error': evaluate.calibration_error(probability_nc, label_n),
  }


def _fusions(c, learner, workdir, summaries, tests, test):
  """The last round, and what all rounds come to together."""
  value = {'mean_class_accuracy': summaries[-1]['mean_class_accuracy']}
  if len(summaries) < c.rounds:
    value['settled'] = (
      f'After round {len(summaries) - 1} no K changed: the remaining '
      f'{c.rounds - len(summaries)} were left out.'
    )
  if c.fusion:
    value['fused'] = _worth(evaluate.fuse(tests), test.labels)
  if c.weight_fusion:
    weights = evaluate.average(
      [learner.restore(workdir / 'rounds' / str(s['round'])) for s in summaries]
    )
    test_nc = learner.posteriors(weights, test, c.evaluate.views, 'fused')
    value['weight_fused'] = _worth(test_nc, test.labels)
  return value


def _distilled(
  c, learner, weights, target, pool, drawn, test, workdir, summaries
):
  """One network that answers as the rounds' networks do on average."""
  directory = workdir / DISTILLED
  teachers = [
    learner.restore(workdir / 'rounds' / str(s['round'])) for s in summaries
  ]
  student = learner.distil(
    weights,
    teachers,
    target,
    pool,
    drawn if c.distill.source else None,
    directory,
  )
  test_nc = learner.posteriors(student, test, c.evaluate.views, 'test')
  if processes.first():
    with files.replacing(directory / 'posteriors.npz') as file:
      np.savez_compressed(
        file,
        test_id=test.ids,
        test_label=test.labels,
        test_probability=test_nc,
      )
  return _worth(test_nc, test.labels)


def _borrowed(pool, drawn):
  """How many images and classes of every source stand behind the target."""
  if drawn is None:
    return {'images_selected': {}, 'classes_selected': {}}
  index = selection.selected(drawn)
  images, classes = {}, {}
  for i, name in enumerate(pool.sources):
    mine = index[pool.source[index] == i]
    images[name] = len(mine)
    classes[name] = len(np.unique(pool.labels[mine]))
  return {'images_selected': images, 'classes_selected': classes}


class Trained:
  """A run's network, to be asked about new images.

  Args:
    workdir: directory of a run with at least one finished round.
    mesh: the devices.

  Raises:
    UserError: if there is no such run or round.
  """

  def __init__(self, workdir, mesh):
    workdir = paths.path(workdir)
    self.classes = classes(workdir)
    stored = files.read_json(workdir / 'config.json')['settings']
    self.settings = ConfigDict(stored)
    kept = workdir / selection.SOURCE_CLASSES
    data = files.read_json(workdir / 'data.json')
    source = data.get('source', {}).get('classes', ())
    source_classes = len(files.read_json(kept) if kept.exists() else source)
    self._learner = learn.Learner(
      self.settings, len(self.classes), source_classes, mesh, workdir
    )
    self._rounds = [
      workdir / 'rounds' / str(m)
      for m in range(self.settings.rounds)
      if (workdir / 'rounds' / str(m) / 'budget.csv').exists()
    ]
    if not self.settings.rounds:
      raise UserError(
        f'{workdir} holds a selection alone (rounds=0), so there is no network '
        'to ask. Train one: rounds >= 1, in another --workdir.'
      )
    if not self._rounds:
      raise UserError(f'{workdir} has no finished round yet; let it run on.')

    self._distilled = workdir / DISTILLED
    self._has_distilled = (self._distilled / 'posteriors.npz').exists()

  @functools.cached_property
  def _one(self):
    if self._has_distilled:
      return self._learner.restore(self._distilled, distilled=True)
    return self._learner.restore(self._rounds[-1])

  @functools.cached_property
  def _variables(self):
    return [self._learner.restore(path) for path in self._rounds]

  def probabilities(self, image_nhwc, *, fuse):
    """Class probabilities of uint8 crops, by one network or the average.

    The one is the distilled network, where there is one, or the last round's.

    Args:
      image_nhwc: RGB, uint8 [n, crop, crop, 3].
      fuse: average the models of all rounds.

    Returns:
      float [n, classes].
    """
    chosen = self._variables if fuse else [self._one]
    return evaluate.fuse(
      [np.asarray(self._learner.probabilities(v, image_nhwc)) for v in chosen]
    )


def classes(workdir):
  """The target's class names of a run.

  Raises:
    UserError: if the directory is not that of a single run.
  """
  path = paths.path(workdir) / 'data.json'
  if not path.exists():
    raise UserError(
      f'{workdir} is not the directory of a run; of a comparison, give one of '
      'its runs/<arm>-<seed>.'
    )
  return tuple(files.read_json(path)['target']['classes'])
