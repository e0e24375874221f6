"""Joint batches to updates: one step function, one loop.

Plain fine-tuning is the same with an empty source half, pretraining with an
empty target half.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec

from sjft_jax import mesh as meshes
from sjft_jax import preemption, progress
from sjft_jax.errors import UserError
from sjft_jax.ops import losses

_INPUTS = ('target_image', 'target_label', 'source_image', 'source_label')
SOFT = 'target_soft'  # only where a teacher is there


class State(struct.PyTreeNode):
  """All that an update changes.

  Attributes:
    step: updates done, int32 scalar.
    params: float32.
    batch_stats: running averages, float32; empty without batch norm.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: optax.Params
  batch_stats: Mapping
  opt_state: optax.OptState

  @property
  def variables(self) -> dict:
    """What a module's `apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


def init(model: nn.Module, seed: int, image_size: int = 64) -> dict:
  """Fresh variables of a `TwoHeads`; compiled once per network.

  Args:
    model: the network.
    seed: of the random weights.
    image_size: side in pixels; only matters to a trunk that is not fully
      convolutional.

  Returns:
    'params' and 'batch_stats', float32.
  """
  return _initialiser(model, image_size)(jax.random.key(seed))


def begin(
  variables: Mapping,
  tx: optax.GradientTransformation,
  mesh,
  start: optax.Params | None = None,
  *,
  sharded: bool = False,
) -> State:
  """The state before the first update, on every device.

  Args:
    variables: 'params' and 'batch_stats'; copied, since a state is donated.
    tx: the optimiser.
    mesh: the devices.
    start: the parameters that L2-SP decays to; None = those of `variables`.
    sharded: as in `make_step`.

  Returns:
    A state of step 0 without momentum.
  """
  variables = meshes.put(dict(variables), mesh)
  start = variables['params'] if start is None else meshes.put(start, mesh)
  return _beginning(tx, mesh, sharded)(variables, start)


@functools.lru_cache(maxsize=8)
def _beginning(tx, mesh, sharded):
  """Jitted function of variables and L2-SP's start to a state."""

  def beginning(variables, start):
    params, batch_stats = jax.tree.map(
      jnp.array, (variables['params'], variables['batch_stats'])
    )
    state = State(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(start))
    return meshes.constrain(state, mesh, sharded)

  return jax.jit(beginning)


def make_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  mesh,
  *,
  target_weight: float = 1.0,
  source_weight: float = 1.0,
  label_smoothing: float = 0.0,
  temperature: float = 1.0,
  scan: bool | None = None,
  sharded: bool = False,
) -> Callable[[State, Mapping], tuple[State, dict[str, jax.Array]]]:
  """One update by m micro-batches, compiled once per shape of the batch.

  g = 1/m sum_i gradient of L(micro-batch i), the running averages of batch
  norm passing from one micro-batch to the next, as Caffe's iter_size. Every
  device sums the gradients of its own images; once an update the devices
  average what they have.

  Args:
    model: a `TwoHeads`.
    tx: turns g into the change of the parameters.
    schedule: the rate in `tx`, for the metrics.
    mesh: the devices, each with an equal part of both halves of a micro-batch.
      A trunk whose batch statistics are those of all devices takes their means
      over `meshes.AXIS`.
    target_weight: of the target's cross-entropy; 1 in the paper, 0.5 in the
      release.
    source_weight: as target_weight.
    label_smoothing: the part of a label that is spread over all classes.
    temperature: of the answers of a teacher.
    scan: one program that loops over the micro-batches, instead of one
      program called m times and another for the update. None does so but on
      the CPU backend, whose convolutions are several times slower within a
      loop.
    sharded: parameters and the optimiser's state are split over the devices
      between updates (`meshes.parameter_sharding`), and gathered for their use.

  Returns:
    Function of (state, batch) to (state, metrics). The state is donated. The
    batch holds target_image uint8 [m, t, h, w, 3], target_label int32 [m, t],
    source_image [m, s, h, w, 3] and source_label [m, s]; t or s may be 0. With
    target_soft float32 [m, t, classes], a teacher's probabilities, the loss is
    the cross-entropy towards them alone.
    Metrics are float32 scalars: loss, grad_norm, learning_rate and, of a half
    that is not empty, {target,source}_{loss,accuracy}.

  Source: Ge & Yu, CVPR 2017, section 3.1; the release's solver.
  """
  if scan is None:
    scan = jax.default_backend() != 'cpu'

  def loss(params, batch_stats, batch):
    (target, source), updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['target_image'],
      batch['source_image'],
      train=True,
      mutable=['batch_stats'],
    )
    if SOFT in batch:
      total = losses.soft_cross_entropy(target, batch[SOFT], temperature)
      metrics = {
        'loss': total,
        'distillation_loss': total,
        'agreement': _accuracy(target, batch['target_label']),
      }
      return total, (updated.get('batch_stats', {}), metrics)
    total, target_loss, source_loss = losses.joint(
      target,
      batch['target_label'],
      source,
      batch['source_label'],
      target_weight=target_weight,
      source_weight=source_weight,
      smoothing=label_smoothing,
    )
    metrics = {'loss': total}
    if len(target):
      metrics['target_loss'] = target_loss
      metrics['target_accuracy'] = _accuracy(target, batch['target_label'])
    if len(source):
      metrics['source_loss'] = source_loss
      metrics['source_accuracy'] = _accuracy(source, batch['source_label'])
    return total, (updated.get('batch_stats', {}), metrics)

  whole, split = PartitionSpec(), PartitionSpec(meshes.AXIS)
  over_devices = functools.partial(
    # Nothing is summed over the devices but by pmean.
    jax.shard_map,
    mesh=mesh,
    check_vma=False,
  )

  # What every device has of its own has a first axis over the devices.
  def zero(state):
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    carry = zeros, state.batch_stats
    return over_devices(_lifted, in_specs=whole, out_specs=split)(carry)

  @functools.partial(
    over_devices, in_specs=(whole, split, split), out_specs=split
  )
  def accumulate(params, carry, micro_batch):
    sum_, batch_stats = jax.tree.map(lambda x: x[0], carry)
    gradient, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(
      params, batch_stats, micro_batch
    )
    carry = jax.tree.map(jnp.add, sum_, gradient), batch_stats
    return _lifted((carry, metrics))

  def update(state, carry, metrics):
    m = len(metrics['loss'])
    sum_, batch_stats = jax.tree.map(lambda x: x.mean(axis=0), carry)
    gradient = jax.tree.map(lambda x: x / m, sum_)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    metrics = jax.tree.map(jnp.mean, metrics) | {
      'grad_norm': _norm(gradient),
      'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
    }
    params = optax.apply_updates(state.params, updates)
    state = State(state.step + 1, params, batch_stats, opt_state)
    return (
      meshes.constrain(state, mesh, sharded),
      meshes.constrain(metrics, mesh, False),
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def scanned(state, batch):
    carry, metrics = jax.lax.scan(
      functools.partial(accumulate, state.params), zero(state), batch
    )
    return update(state, carry, metrics)

  begin_ = jax.jit(zero)
  accumulate_ = jax.jit(
    lambda params, carry, batch, i: accumulate(
      params, carry, jax.tree.map(lambda x: x[i], batch)
    ),
    donate_argnums=1,
  )
  update_ = jax.jit(
    lambda state, carry, metrics: update(
      state, carry, jax.tree.map(lambda *x: jnp.stack(x), *metrics)
    ),
    donate_argnums=0,
  )

  def called(state, batch):
    carry, metrics = begin_(state), []
    for i in range(len(batch['target_label'])):
      carry, metrics_i = accumulate_(state.params, carry, batch, i)
      metrics.append(metrics_i)
    return update_(state, carry, metrics)

  return scanned if scan else called


def fit(
  state: State,
  step_fn: Callable,
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  steps: int,
  mesh,
  first: int = 0,
  write: Callable[[int, dict[str, float]], None] | None = None,
  save: Callable[[int, State], None] | None = None,
  save_every: int = 0,
  label: str = '',
) -> State:
  """Updates a state with every batch.

  A batch is placed on the devices while the step before it runs, and a step's
  metrics are fetched when the next one is under way.

  Args:
    state: after `first` updates; donated.
    step_fn: from `make_step`.
    batches: those of updates first..steps - 1, as `pipelines.joint` has them.
    steps: updates in all.
    mesh: the devices.
    first: updates done before.
    write: called after every update with the number of updates done and the
      metrics.
    save: called with the number of updates done and the state, every
      `save_every` updates, after the last and at SIGTERM, but never with a
      state behind a loss or gradient that is not finite.
    save_every: updates; 0 = only after the last.
    label: what the progress bar says; '' = no bar.

  Returns:
    The state after `steps` updates.

  Raises:
    UserError: at a loss or gradient that is not finite.
    Preemption: once a process of the mesh was sent SIGTERM; in all of them
      after the same update, which is saved.
    ValueError: if there are fewer or more batches than updates.
  """

  def settle(done, metrics, asked):
    """Writes what an update came to; whether training is to stop."""
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if not math.isfinite(metrics['loss'] + metrics['grad_norm']):
      raise UserError(
        f'Training must stay finite: at step {done} the loss is '
        f'{metrics["loss"]:g} and its gradient {metrics["grad_norm"]:g}. '
        f'Lower the learning rate ({metrics["learning_rate"]:g} here), in '
        'another --workdir. What is saved here is from before.'
      )
    if write:
      write(done, metrics)
    return bool(asked)

  done, unsettled = first, None
  with contextlib.ExitStack() as stack:
    bar = None
    for done, batch in enumerate(_placed(batches, mesh), first + 1):
      images = batch['target_label'].size + batch['source_label'].size
      if label and bar is None:
        bar = stack.enter_context(
          progress.bar(steps * images, label, initial=first * images)
        )
      state, metrics = step_fn(state, batch)
      stop = bool(unsettled) and settle(*unsettled)
      asked = meshes.anywhere(preemption.asked(), mesh)
      unsettled = done, metrics, asked
      due = done == steps or (save_every and done % save_every == 0)
      if stop or (save and due):
        stop |= settle(*unsettled)
        unsettled = None
        if save:
          save(done, state)
      if bar is not None:
        bar.update(images)
      if stop:
        raise preemption.Preemption(f' after update {done}, which is saved')
    if unsettled:
      settle(*unsettled)
  if done != steps:
    raise ValueError(f'One batch an update: {first=}, {done=}, {steps=}.')
  return state


@functools.lru_cache(maxsize=8)
def _initialiser(model, image_size):
  """Jitted function of a key to the variables of `model`."""
  # Every parameter has a random generator of its own to compile. Optimising
  # them on the CPU backend takes several times as long as running them.
  on_cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': '0'} if on_cpu else None

  @functools.partial(jax.jit, compiler_options=options)
  def initialise(key):
    image = jnp.zeros((1, image_size, image_size, 3), jnp.uint8)
    return {'batch_stats': {}} | model.init(key, image, image[:0], train=False)

  return initialise


def _lifted(tree):
  """Every array with a first axis of one, that of the devices."""
  return jax.tree.map(lambda x: x[None], tree)


def _accuracy(logits_nc, label_n):
  return (logits_nc.argmax(axis=-1) == label_n).mean()


def _norm(tree):
  return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))


def _placed(batches, mesh) -> Iterator[dict[str, jax.Array]]:
  """Batches on the devices, one ahead of what is asked for."""
  ahead = None
  for batch in batches:
    inputs = {k: batch[k] for k in (*_INPUTS, SOFT) if k in batch}
    placed = meshes.shard(inputs, mesh, axis=1)
    if ahead is not None:
      yield ahead
    ahead = placed
  if ahead is not None:
    yield ahead
