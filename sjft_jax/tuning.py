"""Learning rate and length of every arm, by one rule, on training folds alone.

The training images of seed 0 are cut into folds; with a rate and a length an
arm is trained without a fold and asked about it. The pair that is right most
often, over the folds, is taken for all seeds. Test images are never opened.
"""

import copy

import numpy as np

from sjft_jax import rounds, settings
from sjft_jax.errors import UserError


def check(c, own):
  """Refuses a tuning that makes no sense.

  Args:
    c: every setting of the comparison; `tune` is read.
    own: the settings of an arm.

  Raises:
    UserError: in one line.
  """
  if not c.tune.folds:
    return
  if c.tune.folds < 2 or not c.tune.learning_rates or not c.tune.steps:
    raise UserError(
      'tune needs folds >= 2 and values of learning_rates and steps; came '
      f'{c.tune.folds}, {c.tune.learning_rates}, {c.tune.steps}.'
    )
  if own.optim.schedule != 'cosine':
    raise UserError(
      'tune.steps needs optim.schedule=cosine, which ends with a round whatever'
      f' its length; came {own.optim.schedule}.'
    )
  trial = copy.deepcopy(own)
  apply(
    trial, steps=min(c.tune.steps), learning_rate=min(c.tune.learning_rates)
  )
  settings.check(trial)


def tune(c, arm, own, workdir, mesh, done) -> dict:
  """Finds a learning rate and a length for an arm.

  All rates are tried at the first length, then the other lengths at the best
  rate: as many runs as there are rates and lengths, less one, for each fold.

  Args:
    c: every setting of the comparison; `tune` is read.
    arm: its name.
    own: the settings of its run of seed 0.
    workdir: directory of the comparison; the runs are left in its `tuning`.
    mesh: the devices.
    done: directories of finished runs, to take over from; these are added.

  Returns:
    {'chosen': arguments of `apply`, 'tried': one row per pair}, where a row
    holds the pair and the mean class accuracy of each fold. Among equal means
    the one tried first is chosen.
  """
  tried = []

  def trial(steps, rate):
    accuracies = []
    for fold in range(c.tune.folds):
      name = f'{arm}-{steps}-{rate:g}-{fold}'
      print(f'== tuning {name}', flush=True)
      trial_c = copy.deepcopy(own)
      apply(trial_c, steps=steps, learning_rate=rate)
      trial_c.target.folds, trial_c.target.fold = c.tune.folds, fold
      directory = workdir / 'tuning' / name
      result = rounds.run(trial_c, directory, mesh, donors=done)
      done.append(directory)
      accuracies.append(result['mean_class_accuracy'])
    tried.append(
      {
        'steps': steps,
        'learning_rate': rate,
        'mean_class_accuracy': accuracies,
      }
    )

  def best():
    # The first of the largest.
    return max(tried, key=lambda row: np.mean(row['mean_class_accuracy']))

  first, *others = c.tune.steps
  for rate in c.tune.learning_rates:
    trial(first, rate)
  rate = best()['learning_rate']
  for steps in others:
    trial(steps, rate)
  chosen = {name: best()[name] for name in ('steps', 'learning_rate')}
  return {'chosen': chosen, 'tried': tried}


def apply(c, *, steps, learning_rate):
  """Sets the rate, and the updates of a round so that all make `steps`."""
  c.train.steps = steps // c.rounds
  c.optim.learning_rate = learning_rate
