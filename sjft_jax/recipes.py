"""Settings -> the optimiser and the step that a stage of training takes."""

import functools
from typing import NamedTuple

import optax
from ml_collections import FrozenConfigDict

from sjft_jax import optim, train


def _step_schedule(c, rate, steps, of_round):
  # Distillation has another length than a round: it drops in proportion.
  boundaries = [b * steps // of_round for b in c.boundaries]
  return optim.step_schedule(rate, boundaries, c.factor)


def _cosine_schedule(c, rate, steps, of_round):
  del of_round
  return optim.cosine_schedule(rate, steps, c.warmup)


# (settings, rate, updates, updates of a round) -> schedule of a stage.
SCHEDULES = {'step': _step_schedule, 'cosine': _cosine_schedule}


class Recipe(NamedTuple):
  """How a stage of training learns.

  Attributes:
    optimiser: turns a gradient into the change of the parameters.
    schedule: the rate in it, by the update.
    source_weight: of the source's cross-entropy.
  """

  optimiser: optax.GradientTransformation
  schedule: optax.Schedule
  source_weight: float


def pretraining(c, frozen) -> Recipe:
  """The recipe of pretraining.

  Args:
    c: every setting.
    frozen: patterns of what stays as it is.
  """
  made = _pretraining(
    FrozenConfigDict(c.pretrain), c.optim.momentum, tuple(frozen)
  )
  # There is no target: the weight would only be a factor of the rate.
  return Recipe(*made, source_weight=1.0)


def fine_tuning(c, frozen, steps, m) -> Recipe:
  """The recipe of a round.

  Args:
    c: every setting.
    frozen: patterns of what stays as it is.
    steps: updates.
    m: the round, from 0; distillation comes after the last.
  """
  factors = c.optim.round_factors
  made = _fine_tuning(
    FrozenConfigDict(c.optim),
    factors[min(m, len(factors) - 1)],
    tuple(frozen),
    steps,
    c.train.steps,
  )
  return Recipe(*made, c.train.source_weight)


# Stages with equal settings in one process share what was compiled.
@functools.lru_cache(maxsize=8)
def _pretraining(c, momentum, frozen):
  """(optimiser, schedule) of the settings of pretraining."""
  schedule = optim.cosine_schedule(c.learning_rate, c.steps, c.warmup)
  optimiser = optim.sgd(
    schedule, momentum=momentum, weight_decay=c.weight_decay, frozen=frozen
  )
  return optimiser, schedule


@functools.lru_cache(maxsize=8)
def _fine_tuning(c, round_factor, frozen, steps, of_round):
  """(optimiser, schedule) of the settings of the optimiser."""
  rate = c.learning_rate * round_factor
  schedule = SCHEDULES[c.schedule](c, rate, steps, of_round)
  optimiser = optim.RULES[c.rule](
    schedule,
    momentum=c.momentum,
    weight_decay=c.weight_decay,
    frozen=frozen,
    to_start=c.to_start,
  )
  return optimiser, schedule


_make_step = functools.lru_cache(maxsize=8)(train.make_step)


def step(c, network, recipe, mesh):
  """The update of a stage, as of `train.make_step`.

  Args:
    c: every setting.
    network: a `TwoHeads`.
    recipe: of the stage.
    mesh: the devices.
  """
  return _make_step(
    network,
    recipe.optimiser,
    recipe.schedule,
    mesh,
    target_weight=c.train.target_weight,
    source_weight=recipe.source_weight,
    label_smoothing=c.train.label_smoothing,
    temperature=c.distill.temperature,
    sharded=c.train.sharded,
  )
