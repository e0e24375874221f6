"""Caffe's stochastic gradient descent, its schedules, and frozen parts."""

from collections.abc import Callable, Sequence

import jax
import optax

_NORM_PARAMETERS = ('scale', 'bias')


def step_schedule(
  learning_rate: float, boundaries: Sequence[int], factor: float = 0.1
) -> optax.Schedule:
  """The rate times `factor` for every boundary that is reached.

  Args:
    learning_rate: of update 0.
    boundaries: updates, counted from 0, at which the rate drops.
    factor: what remains of it.

  Returns:
    Function of the update's number to its rate.
  """
  drops = dict.fromkeys(map(int, boundaries), factor)
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
  head_bias_rate: float = 2.0,
  decay_norm: bool = True,
  frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Caffe's SGD: the learning rate is inside the momentum, decay is coupled.

  v <- momentum v + rate multiplier (gradient + weight_decay w);  w <- w - v

  Args:
    schedule: update number -> rate.
    momentum: of v.
    weight_decay: of every parameter but the heads' biases.
    head_bias_rate: multiplier of the heads' biases; 1 for all else.
    decay_norm: decay batch normalisation's scales and biases too, as the
      release, whose Scale layers keep Caffe's default.
    frozen: parameters that never change, by path or its beginning:
      'source_head', 'trunk/conv1'.

  Returns:
    An optax transformation of gradients to be added to parameters.

  Source: Caffe's SGDSolver; the release's solver and train_val.prototxt.
  """

  def decayed(path):
    head_bias = _is_head_bias(path)
    norm = path[0] == 'trunk' and path[-1] in _NORM_PARAMETERS
    return not head_bias and (decay_norm or not norm)

  def label(path):
    return 'head_bias' if _is_head_bias(path) else 'other'

  def group(path):
    name = '/'.join(path) + '/'
    still = any(name.startswith(f'{prefix}/') for prefix in frozen)
    return 'frozen' if still else 'trained'

  caffe = optax.chain(
    optax.masked(optax.add_decayed_weights(weight_decay), _map(decayed)),
    optax.multi_transform(
      {'head_bias': optax.scale(head_bias_rate), 'other': optax.identity()},
      _map(label),
    ),
    optax.scale_by_schedule(schedule),
    optax.trace(momentum),
    optax.scale(-1.0),
  )
  return optax.multi_transform(
    {'trained': caffe, 'frozen': optax.set_to_zero()}, _map(group)
  )


def _is_head_bias(path) -> bool:
  return path[0].endswith('_head') and path[-1] == 'bias'


def _map(function: Callable) -> Callable:
  """Lifts a function of a parameter's path to a pytree of parameters."""
  return lambda params: jax.tree.map_with_path(
    lambda path, _: function(tuple(key.key for key in path)), params
  )
