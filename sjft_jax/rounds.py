"""The whole method: search once, then train and re-weight, round by round."""

import numpy as np

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
  round_files,
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
  source_classes = len(drawable.classes) if pool is not None else 0
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
  # For what these two refuse: the search, which needs what they return, comes
  # after the guard.
  exact.cpu()
  screen.grid(meshes.own(mesh), c.search.target_parts)
  check_files(c)
  if processes.count() > 1:
    # They may lie on the disks of several machines.
    used = []
    if c.selection in selection.SEARCHED:
      used.append(c.describe.edges)
      used.append(c.describe.weights if c.describe.bank == 'conv' else '')
    if c.rounds or c.selection == 'features':
      used.append(c.model.weights)
    digests = [name and files.digest(name) for name in used]
    processes.agree(digests, 'weight files and edges')
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
  # They are read again where they are used, hours later.
  if c.selection in selection.SEARCHED:
    describe.load_bank(c.describe)
    if c.describe.edges:
      # Says so where there is no such file; of what it holds, nothing is asked.
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
  if processes.first() and not round_files.finished(directory):
    round_files.write(
      directory, posterior_qc, test_nc, budget_q, next_q, target, test
    )
  return next_q


def _answers(directory):
  """(training, test) probabilities that a finished round left, or None."""
  if not processes.told(lambda: round_files.finished(directory)):
    return None
  kept = round_files.posteriors(directory)
  return kept['train_probability'], kept['test_probability']


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
  directory = workdir / round_files.DISTILLED
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
    round_files.write_test(directory, test_nc, test)
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
