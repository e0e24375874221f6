"""Caffe's SGD and AdamW, their schedules, L2-SP, and frozen parts."""

import collections
import fnmatch
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of the heads' biases, as Caffe's; 1 for all else.
_HEAD_BIAS_RATE = 2.0


def step_schedule(
  learning_rate: float, boundaries: Sequence[int], factor: float = 0.1
) -> optax.Schedule:
  """The rate times `factor` for every boundary that is reached.

  Args:
    learning_rate: of update 0.
    boundaries: updates, counted from 0, at which the rate drops; at one that is
      named twice, twice.
    factor: what remains of it.

  Returns:
    Function of the update's number to its rate.
  """
  drops = {b: factor**n for b, n in collections.Counter(boundaries).items()}
  return optax.piecewise_constant_schedule(learning_rate, drops)


def cosine_schedule(
  learning_rate: float, steps: int, warmup: int = 0
) -> optax.Schedule:
  """Linear to `learning_rate` in `warmup` updates, then a cosine to 0.

  Args:
    learning_rate: the highest rate.
    steps: updates in all.
    warmup: updates, fewer than `steps`.

  Returns:
    Function of the update's number to its rate.

  Raises:
    ValueError: if nothing is left after the warm-up.
  """
  if not 0 <= warmup < steps:
    raise ValueError(f'A warm-up shorter than the whole: {warmup=}, {steps=}.')
  return optax.join_schedules(
    [
      lambda step: learning_rate * (step + 1) / (warmup + 1),
      optax.cosine_decay_schedule(learning_rate, steps - warmup),
    ],
    [warmup],
  )


def sgd(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
  to_start: bool = False,
  frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Caffe's SGD: the learning rate is inside the momentum, decay is coupled.

  v <- momentum v + rate multiplier (gradient + weight_decay w);  w <- w - v

  Args:
    schedule: update number -> rate.
    momentum: of v.
    weight_decay: of every parameter but the heads' biases, whose rate is twice
      that of all else; so of batch normalisation's scales and biases, too, as
      in the release, whose Scale layers keep Caffe's default.
    to_start: L2-SP, decay the trunk towards the parameters that `init` sees:
      weight_decay (w - start) in place of weight_decay w.
    frozen: parameters that never change, by path or its beginning, where *
      stands for anything: 'source_head', 'trunk/conv1', 'trunk/res2_*'. Batch
      norm goes on there as elsewhere: by the statistics of the batch, with
      running averages that follow it.

  Returns:
    An optax transformation of gradients to be added to parameters.

  Source: Caffe's SGDSolver; the release's solver and train_val.prototxt;
  L2-SP: Li, Grandvalet, Davoine, ICML 2018.
  """

  def label(path):
    return 'head_bias' if _is_head_bias(path) else 'other'

  caffe = optax.chain(
    _decay(weight_decay, to_start),
    optax.multi_transform(
      {'head_bias': optax.scale(_HEAD_BIAS_RATE), 'other': optax.identity()},
      _by_path(label),
    ),
    optax.scale_by_schedule(schedule),
    optax.trace(momentum),
    optax.scale(-1.0),
  )
  return _freezing(frozen, caffe)


def adamw(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
  to_start: bool = False,
  frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Adam with decoupled decay; with weight_decay 0, Adam.

  w <- w - rate (m / (sqrt(v) + 1e-8) + weight_decay w), m and v the averages
  of the gradient and of its square, corrected for their start at 0.

  Args:
    schedule: update number -> rate.
    momentum: what m keeps at an update; v keeps 0.999.
    weight_decay: as in `sgd`, but outside the averages.
    to_start: as in `sgd`.
    frozen: as in `sgd`.

  Returns:
    An optax transformation of gradients to be added to parameters.

  Source: Loshchilov & Hutter, ICLR 2019.
  """
  adam = optax.chain(
    optax.scale_by_adam(b1=momentum, b2=0.999),
    _decay(weight_decay, to_start),
    optax.scale_by_schedule(schedule),
    optax.scale(-1.0),
  )
  return _freezing(frozen, adam)


RULES = {'sgd': sgd, 'adamw': adamw}


def matches(pattern: str, path: Sequence[str]) -> bool:
  """Whether a pattern of `frozen` means this parameter or a part of it."""
  return any(
    fnmatch.fnmatchcase('/'.join(path[:n]), pattern)
    for n in range(1, len(path) + 1)
  )


class _Start(NamedTuple):
  """The parameters that decay leads to."""

  params: optax.Params


def _decay(weight_decay, to_start):
  """Adds weight_decay times the way from the start, or from 0."""

  def init(params):
    return _Start(jax.tree.map_with_path(_start_of, params))

  def update(updates, state, params):
    updates = jax.tree.map(
      lambda g, w, start: g + weight_decay * (w - start),
      updates,
      params,
      state.params,
    )
    return updates, state

  towards = (
    optax.GradientTransformation(init, update)
    if to_start
    else optax.add_decayed_weights(weight_decay)
  )
  return optax.masked(towards, _by_path(lambda path: not _is_head_bias(path)))


def _start_of(path, leaf):
  """The start of a parameter: fresh heads have none but 0."""
  # Copied, since parameters are donated.
  return jnp.array(leaf) if path[0].key == 'trunk' else jnp.zeros_like(leaf)


def _freezing(frozen, rule):
  """The rule for all parameters but those that stay as they are."""

  def group(path):
    still = any(matches(pattern, path) for pattern in frozen)
    return 'frozen' if still else 'trained'

  return optax.multi_transform(
    {'trained': rule, 'frozen': optax.set_to_zero()}, _by_path(group)
  )


def _is_head_bias(path) -> bool:
  return path[0].endswith('_head') and path[-1] == 'bias'


def _by_path(function: Callable) -> Callable:
  """Lifts a function of a parameter's path to a pytree of parameters."""
  return lambda params: jax.tree.map_with_path(
    lambda path, _: function(tuple(key.key for key in path)), params
  )
