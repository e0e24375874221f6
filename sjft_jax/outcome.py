"""What a run came to, in the numbers of results.json."""

import numpy as np

from sjft_jax import evaluate, round_files, selection


def summary(m, budget_q, next_q, posterior_qc, test_nc, target, test) -> dict:
  """What a round came to: its number, `scores`, and how K changed.

  Args:
    m: the round.
    budget_q: K in this round, int [q].
    next_q: K in the next one, int [q].
    posterior_qc: class probabilities of the target images, float [q, c].
    test_nc: of the test images, float [n, c].
    target: the target training images.
    test: the target test images.
  """
  return {
    'round': m,
    **scores(test_nc, test.labels),
    'train_accuracy': evaluate.mean_class_accuracy(posterior_qc, target.labels),
    'mean_k': float(np.mean(budget_q)),
    'changed_k': int((next_q != budget_q).sum()),
  }


def scores(probability_nc, label_n) -> dict:
  """Mean class accuracy, accuracy and calibration error of answers.

  Args:
    probability_nc: class probabilities, float [n, c].
    label_n: true classes, int [n].
  """
  return {
    'mean_class_accuracy': evaluate.mean_class_accuracy(
      probability_nc, label_n
    ),
    'accuracy': evaluate.accuracy(probability_nc, label_n),
    'calibration_error': evaluate.calibration_error(probability_nc, label_n),
  }


def networks(learner, workdir, summaries) -> list:
  """The variables of every round, as it left them.

  Args:
    learner: of the run.
    workdir: path of the run.
    summaries: of the rounds, as of `summary`.
  """
  return [
    learner.restore(round_files.directory(workdir, s['round']))
    for s in summaries
  ]


def fusions(c, learner, workdir, summaries, tests, test) -> dict:
  """The last round, and what all rounds come to together.

  Args:
    c: every setting.
    learner: of the run.
    workdir: path of the run.
    summaries: of the rounds, one at least, as of `summary`.
    tests: class probabilities of the test images by round, float [n, c] each.
    test: the target test images.

  Returns:
    mean_class_accuracy of the last round; `settled`, in words, where rounds
    were left out; `fused` and `weight_fused` as of `scores`, where asked for.
  """
  value = {'mean_class_accuracy': summaries[-1]['mean_class_accuracy']}
  if len(summaries) < c.rounds:
    value['settled'] = (
      f'After round {len(summaries) - 1} no K changed: the remaining '
      f'{c.rounds - len(summaries)} were left out.'
    )
  if c.fusion:
    value['fused'] = scores(evaluate.fuse(tests), test.labels)
  if c.weight_fusion:
    weights = evaluate.average(networks(learner, workdir, summaries))
    test_nc = learner.posteriors(weights, test, c.evaluate.views, 'fused')
    value['weight_fused'] = scores(test_nc, test.labels)
  return value


def borrowed(pool, drawn) -> dict:
  """How many images and classes of every source stand behind the target.

  Args:
    pool: the source.
    drawn: candidates of every target image; None where nothing is borrowed.

  Returns:
    `images_selected` and `classes_selected`, {source: count} each.
  """
  if drawn is None:
    return {'images_selected': {}, 'classes_selected': {}}
  index = selection.selected(drawn)
  images, classes = {}, {}
  for i, name in enumerate(pool.sources):
    mine = index[pool.source[index] == i]
    images[name] = len(mine)
    classes[name] = len(np.unique(pool.labels[mine]))
  return {'images_selected': images, 'classes_selected': classes}
