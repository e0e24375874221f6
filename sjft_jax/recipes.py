"""Settings -> the optimiser and the step that a stage of training takes."""

import functools

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


def make(c, network, frozen, m, steps, mesh):
  """The optimiser and the step of a stage of training.

  Stages with equal settings in one process share what was compiled.

  Args:
    c: every setting.
    network: a `TwoHeads`.
    frozen: patterns of what stays as it is.
    m: the round; -1 = pretraining.
    steps: updates of the stage.
    mesh: the devices.

  Returns:
    (optax transformation, function as of `train.make_step`).
  """
  factors = c.optim.round_factors
  return _compiled(
    network,
    FrozenConfigDict(c.optim),
    FrozenConfigDict(c.pretrain) if m < 0 else None,
    tuple(frozen),
    steps,
    c.train.steps,
    1.0 if m < 0 else factors[min(m, len(factors) - 1)],
    c.train.target_weight,
    # Of pretraining it would only be a factor of the rate.
    1.0 if m < 0 else c.train.source_weight,
    c.train.label_smoothing,
    c.distill.temperature,
    c.train.sharded,
    mesh,
  )


@functools.lru_cache(maxsize=8)
def _compiled(
  network,
  c,
  pretrain,
  frozen,
  steps,
  of_round,
  round_factor,
  target_weight,
  source_weight,
  label_smoothing,
  temperature,
  sharded,
  mesh,
):
  """(optimiser, step) of these settings, made once per process."""
  settings = dict(momentum=c.momentum, frozen=frozen)
  if pretrain is None:
    settings['weight_decay'] = c.weight_decay
    rate = c.learning_rate * round_factor
    schedule = SCHEDULES[c.schedule](c, rate, steps, of_round)
    rule, settings['to_start'] = optim.RULES[c.rule], c.to_start
  else:
    rule, settings['weight_decay'] = optim.sgd, pretrain.weight_decay
    schedule = optim.cosine_schedule(
      pretrain.learning_rate, pretrain.steps, pretrain.warmup
    )
  optimiser = rule(schedule, **settings)
  step = train.make_step(
    network,
    optimiser,
    schedule,
    mesh,
    target_weight=target_weight,
    source_weight=source_weight,
    label_smoothing=label_smoothing,
    temperature=temperature,
    sharded=sharded,
  )
  return optimiser, step
