"""The whole method: search once, then train and re-weight, round by round."""

import numpy as np

from sjft_jax import (
  files,
  guard,
  intake,
  learn,
  outcome,
  paths,
  preflight,
  processes,
  reasons,
  round_files,
  selection,
  suspects,
  workdirs,
)
from sjft_jax import mesh as meshes
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
  preflight.check(c, target, test, mesh, workdir)
  with clock('guard'):
    pool = guard.withhold(c, target, test, pool, workdir, donors)
  with clock('search'):
    candidates, drawable = selection.stage(
      c, target, pool, workdir, mesh, donors
    )
  source_classes = len(drawable.classes) if pool is not None else 0
  learner = learn.Learner(c, len(target.classes), source_classes, mesh, workdir)
  start = weights = drawn = None
  if c.rounds:
    guard.require(workdir, target, test, pool)
    with clock('pretrain'):
      start = weights = learner.start(pool, workdir / 'pretrain', donors)
  budget_q = np.full(len(target), c.budget.initial)
  summaries, tests, settled = [], [], False
  for m in range(c.rounds):
    if settled and c.end_when_settled:
      break
    directory = round_files.directory(workdir, m)
    drawn = candidates(budget_q)
    level_q = budget_q // c.budget.initial if c.train.by_hardness else None
    with clock('train'):
      weights = learner.fine_tune(
        start, weights, target, drawable, drawn, level_q, m, directory
      )
    with clock('evaluate'):
      kept = _answers(directory)
      posterior_qc, test_nc = kept or (
        learner.posteriors(weights, target, c.hardness.views, 'posteriors'),
        learner.posteriors(weights, test, c.evaluate.views, 'test'),
      )
      tests.append(test_nc)
    next_q = _end_round(
      c, directory, budget_q, posterior_qc, test_nc, target, test
    )
    summaries.append(
      outcome.summary(m, budget_q, next_q, posterior_qc, test_nc, target, test)
      | outcome.borrowed(pool, drawn)
    )
    settled, budget_q = (next_q == budget_q).all(), next_q
  results = {'rounds': summaries, 'seconds': clock.seconds}
  if c.rounds:
    results |= outcome.fusions(c, learner, workdir, summaries, tests, test)
  else:
    results['selection'] = outcome.borrowed(pool, candidates(budget_q))
  if c.rounds and c.distill.steps:
    with clock('distill'):
      directory = workdir / round_files.DISTILLED
      teachers = outcome.networks(learner, workdir, summaries)
      shown = drawn if c.distill.source else None
      student = learner.distil(
        start, weights, teachers, target, drawable, shown, directory
      )
      results['distilled'] = _test_student(c, learner, student, test, directory)
  results['guard'] = guard.exposure(c, workdir, test, tests)
  asked = c.suspects.neighbours and c.selection == 'neighbours'
  if c.rounds and asked and learn.trains_source_head(c):
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


def _end_round(c, directory, budget_q, posterior_qc, test_nc, target, test):
  """Has what a round found out written; returns the next round's K."""
  # More than the cap adds nothing, and may be too much for int32.
  most = c.budget.maximum
  wrong, unsure = c.hardness.add_wrong, c.hardness.add_unsure
  next_q = np.asarray(
    hardness.next_budget(
      budget_q,
      posterior_qc,
      target.labels,
      add_wrong=min(round(wrong * c.budget.initial), most),
      add_unsure=min(round(unsure * c.budget.initial), most),
      min_entropy=c.hardness.min_entropy,
      maximum=most,
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


def _test_student(c, learner, student, test, directory):
  """What the distilled network comes to; its answers are written."""
  test_nc = learner.posteriors(student, test, c.evaluate.views, 'test')
  if processes.first():
    round_files.write_test(directory, test_nc, test)
  return outcome.scores(test_nc, test.labels)
