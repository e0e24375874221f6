"""Learning rate and length of every arm, by one rule, on training folds alone.

The training images of seed 0 are cut into folds; with every pair of a rate and
a length an arm is trained without a fold and asked about it. What is right most
often, over the folds, is taken for all seeds. Test images are never opened.
"""

import copy
import itertools

import numpy as np

from sjft_jax import files, rounds
from sjft_jax.errors import UserError


def check(c):
  """Refuses a tuning that makes no sense.

  Args:
    c: every setting; `tune`, `optim.schedule` and `rounds` are read.

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
  if c.optim.schedule != 'cosine':
    raise UserError(
      'tune.steps needs optim.schedule=cosine, which ends with a round whatever'
      f' its length; came {c.optim.schedule}.'
    )
  if min(c.tune.steps) < c.rounds or min(c.tune.learning_rates) <= 0:
    raise UserError(
      f'tune needs rates above 0 and an update for each of {c.rounds} rounds '
      f'(rounds); came {c.tune.learning_rates} and {c.tune.steps}.'
    )


def tune(c, settings, workdir, mesh) -> dict:
  """Finds a learning rate and a length for every arm.

  Args:
    c: every setting of the comparison; `tune` is read.
    settings: {arm: the settings of its run of seed 0}.
    workdir: directory of the comparison; the runs are left in its `tuning`.
    mesh: the devices.

  Returns:
    {arm: {'chosen': arguments of `apply`, 'tried': one row per pair}}, where a
    row holds the pair and the mean class accuracy of each fold. Among equal
    means the pair that comes first in the settings is chosen: lengths, and
    rates within each. Empty if nothing is to be tuned.
  """
  if not c.tune.folds:
    return {}
  tuned, done = {}, []
  pairs = list(itertools.product(c.tune.steps, c.tune.learning_rates))
  for arm, own in settings.items():
    tried = []
    for steps, rate in pairs:
      accuracies = []
      for fold in range(c.tune.folds):
        name = f'{arm}-{steps}-{rate:g}-{fold}'
        print(f'== tuning {name}', flush=True)
        trial = copy.deepcopy(own)
        apply(trial, steps=steps, learning_rate=rate)
        trial.target.folds, trial.target.fold = c.tune.folds, fold
        directory = workdir / 'tuning' / name
        result = rounds.run(trial, directory, mesh, donors=done)
        done.append(directory)
        accuracies.append(result['mean_class_accuracy'])
      tried.append(
        {
          'steps': steps,
          'learning_rate': rate,
          'mean_class_accuracy': accuracies,
        }
      )
    means = [np.mean(row['mean_class_accuracy']) for row in tried]
    best = tried[int(np.argmax(means))]
    chosen = {name: best[name] for name in ('steps', 'learning_rate')}
    tuned[arm] = {'chosen': chosen, 'tried': tried}
    files.write_json(workdir / 'tuning.json', tuned)
  return tuned


def apply(c, *, steps, learning_rate):
  """Sets the rate, and the updates of a round so that all make `steps`."""
  c.train.steps = steps // c.rounds
  c.optim.learning_rate = learning_rate
