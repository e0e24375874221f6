"""The network of a run: pretrained, trained round by round, asked for answers.

Binds the settings to the network, the optimiser and the step. Runs with equal
settings in one process share what was compiled.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import FrozenConfigDict

from sjft_jax import (
  checkpoints,
  evaluate,
  files,
  metrics,
  optim,
  paths,
  processes,
  train,
)
from sjft_jax import mesh as meshes
from sjft_jax.data import pipelines
from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, trunks, two_heads, weight_files
from sjft_jax.models.convention import CAFFE, Convention


def check(c, mesh, workdir):
  """Refuses what would fail only when training begins, after the search.

  Args:
    c: every setting.
    mesh: the devices.
    workdir: directory of the run.

  Raises:
    UserError: if the weights are of another network, or if `optim.frozen`
      names what it does not have.
  """
  learner = Learner(c, 1, 1, mesh, workdir)
  if c.model.weights:
    pretrained.load(
      c.model.weights, learner.fresh(c.seed), learner.network.convention
    )
  if not c.optim.frozen:
    return
  image = jax.ShapeDtypeStruct((1, c.train.crop, c.train.crop, 3), jnp.uint8)
  init = functools.partial(learner.network.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), image, image)
  paths = traverse_util.flatten_dict(shapes['params'])
  for pattern in c.optim.frozen:
    if not any(optim.matches(pattern, path) for path in paths):
      parts = dict.fromkeys('/'.join(path[:2]) for path in paths)
      raise UserError(
        f'optim.frozen names {pattern!r}, which no parameter is; there are '
        f'{", ".join(parts)}.'
      )


class Learner:
  """What a run knows about its network.

  Args:
    c: every setting.
    target_classes: outputs of the target classifier.
    source_classes: outputs of the source classifier; 0 without a source.
    mesh: the devices.
    workdir: directory of the run, for metrics.
  """

  def __init__(self, c, target_classes, source_classes, mesh, workdir):
    self._c, self._mesh, self._workdir = c, mesh, paths.path(workdir)
    self.network = two_heads.TwoHeads(
      trunk=trunks.TRUNKS[c.model.trunk](c.model),
      target_classes=target_classes,
      # A head that nothing reaches, where there is no source.
      source_classes=max(source_classes, 1),
      averages=c.model.averages,
      convention=self._convention(),
    )

  def _convention(self):
    """What the network is fed: that of its weights, for as long as it lives."""
    kept = self._workdir / 'input.json'

    def convention():
      if kept.exists():
        return files.read_json(kept)
      weights = self._c.model.weights
      found = weight_files.convention(weights) if weights else CAFFE
      return dataclasses.asdict(found)

    return Convention(**processes.told(convention))

  def start(self, pool, directory, donors=()):
    """The weights of the first round: the trunk as configured, heads fresh.

    Args:
      pool: the source, for pretraining; None where there is none.
      directory: where pretraining leaves trunk.safetensors.
      donors: directories of runs whose pretraining is taken over if it had
        the same data and settings.

    Returns:
      Variables: 'params' and 'batch_stats'.
    """
    variables = self._begin(pool, directory, donors)
    self._start = variables['params']
    return variables

  def _begin(self, pool, directory, donors):
    c = self._c
    variables = self.fresh(c.seed)
    convention = self.network.convention
    # The weights may be gone when the trained network is asked.
    if processes.first():
      files.write_json(
        self._workdir / 'input.json', dataclasses.asdict(convention)
      )
    if not c.pretrain.steps:
      weights = c.model.weights
      if not weights:
        return variables
      return pretrained.load(weights, variables, convention)
    key = _pretraining_key(c, pool)
    trunk = directory / 'trunk.safetensors'

    def is_finished():
      for donor in donors:
        theirs = donor / 'pretrain' / 'key.json'
        if not directory.exists() and _read(theirs) == key:
          with files.building(directory, trunk.name) as beside:
            files.copy_tree(donor / 'pretrain', beside)
      return trunk.exists()

    def finish():
      # First, so that whoever finds the trunk finds what it depends on.
      files.write_json(directory / 'key.json', key)
      pretrained.save(
        trunk, trained, network=c.model.trunk, convention=convention
      )
      # Only a restart in the middle needs it.
      paths.remove_tree(directory / 'checkpoint')

    if not processes.told(is_finished):
      trained = meshes.localise(self._pretrain(pool, directory), self._mesh)
      processes.told(finish)
    files.wait_for(trunk)
    return pretrained.load(trunk, variables, convention)

  def _pretrain(self, pool, directory):
    """Variables after training on the source alone."""
    c = self._c.pretrain
    # All classes of the source, of which the rounds may drop rare ones.
    network = self.network.clone(source_classes=len(pool.classes))
    variables = self.fresh(c.seed, network)
    if self._c.model.weights:
      variables = pretrained.load(
        self._c.model.weights, variables, self.network.convention
      )
    batches = functools.partial(
      pipelines.joint,
      None,
      pool,
      None,
      seed=(c.seed,),
      micro_batches=1,
      target_batch=0,
      source_batch=c.batch,
    )
    frozen = ('target_head',)
    return self._fit(
      network, variables, frozen, batches, c.steps, directory, -1
    )

  def fine_tune(
    self, variables, target, pool, candidates, level_q, m, directory
  ):
    """Trains one round, from where a killed one was saved.

    Args:
      variables: of the round before.
      target: the target training images.
      pool: the source, or None.
      candidates: which source images each target image draws; None for none.
      level_q: how often each target image comes in an epoch; None = once.
      m: the round.
      directory: the round's; its checkpoint goes there.

    Returns:
      Variables after the round.
    """
    c = self._c
    batches = functools.partial(
      pipelines.joint,
      target,
      pool,
      candidates,
      seed=(c.seed, m),
      micro_batches=c.train.micro_batches,
      target_batch=c.train.target_batch,
      source_batch=c.train.source_batch if candidates else 0,
      level_q=level_q,
      most_per_label=c.train.most_per_label,
    )
    frozen = self._frozen()
    return self._fit(
      self.network, variables, frozen, batches, c.train.steps, directory, m
    )

  def _frozen(self):
    """What stays as it is in the rounds."""
    # Decay alone would change a head that no image reaches.
    unreached = ('source_head',) if self._c.selection == 'none' else ()
    return (*self._c.optim.frozen, *unreached)

  def _optimiser_and_step(self, network, frozen, m):
    c = self._c
    factors = c.optim.round_factors
    return _compiled(
      network,
      FrozenConfigDict(c.optim),
      FrozenConfigDict(c.pretrain) if m < 0 else None,
      tuple(frozen),
      c.train.steps,
      1.0 if m < 0 else factors[min(m, len(factors) - 1)],
      c.train.target_weight,
      c.train.source_weight,
      c.train.label_smoothing,
      c.train.sharded,
      self._mesh,
    )

  def _fit(self, network, variables, frozen, batches, steps, directory, m):
    """Trains from `variables`, or from where a killed run was saved."""
    c = self._c
    optimiser, step = self._optimiser_and_step(network, frozen, m)
    start = self._start if m >= 0 else None
    state = self._first_state(variables, optimiser, start)
    label = 'pretrain' if m < 0 else f'round {m}'
    index, count = meshes.share()
    made = batches.keywords
    halves = made['target_batch'], made['source_batch']
    examples = made['micro_batches'] * max(halves)  # of an update

    def save(n, state):
      # Before the checkpoint by which a killed run goes on behind them.
      write.sync()
      # Counted over all processes, so that another number of them goes on with
      # the same batches.
      saved.save(n, state, {'round': m, 'examples': n * examples})

    with (
      processes.together(),
      checkpoints.Checkpoints(directory / 'checkpoint') as saved,
    ):
      first = 0
      if saved.step is not None:
        state, meta = saved.restore(state)
        first = meta['examples'] // examples
      if first < steps:
        with metrics.Writer(self._workdir, m, first) as write:
          state = train.fit(
            state,
            step,
            batches(
              steps=steps,
              first_step=first,
              resize=c.train.resize,
              crop=c.train.crop,
              mirror=c.train.mirror,
              threads=c.threads,
              process=index,
              processes=count,
            ),
            first=first,
            steps=steps,
            mesh=self._mesh,
            write=write,
            save=save,
            save_every=c.train.checkpoint_every,
            label=label,
          )
    return state.variables

  def _first_state(self, variables, optimiser, start=None):
    return train.begin(
      variables, optimiser, self._mesh, start, sharded=self._c.train.sharded
    )

  def restore(self, directory):
    """The variables that a finished round left in its directory."""
    optimiser, _ = self._optimiser_and_step(self.network, self._frozen(), 0)
    state = self._first_state(self.fresh(self._c.seed), optimiser)
    with checkpoints.Checkpoints(directory / 'checkpoint') as saved:
      if saved.step is None:
        raise UserError(f'{directory} holds no finished checkpoint.')
      return saved.restore(state)[0].variables

  def probabilities(self, variables, image_nhwc):
    """Target class probabilities of uint8 images, float32 [n, classes]."""
    return _probabilities(self.network)(variables, image_nhwc)

  def posteriors(self, variables, dataset, views, label):
    """Target class probabilities of a data set, float32 [n, classes]."""
    return self._ask(_probabilities, variables, dataset, views, label)

  def source_answers(self, variables, dataset):
    """What the network makes of source images.

    Args:
      variables: of the network.
      dataset: source images.

    Returns:
      (logits of the source classes float16 [n, classes],
       feature of the trunk float16 [n, f]).
    """
    found_nd = self._ask(
      _source_answers, variables, dataset, 'centre', 'suspects'
    )
    return np.split(found_nd, [self.network.source_classes], axis=1)

  def _ask(self, question, variables, dataset, views, label):
    """What `question` finds, of every image of a data set."""
    c = self._c
    # Every process asks about a share, on its own devices.
    index, count = meshes.share()
    variables = meshes.localise(variables, self._mesh)
    found_nd, valid_n = evaluate.posteriors(
      functools.partial(question(self.network), variables),
      dataset.subset(np.arange(index, len(dataset), count)),
      resize=c.train.resize,
      crop=c.train.crop,
      batch=c.evaluate.batch,
      mesh=meshes.own(self._mesh),
      threads=c.threads,
      label=label,
      views=views,
      mirror=c.train.mirror,
      scales=c.evaluate.scales,
    )
    found_nd = meshes.interleave(found_nd, len(dataset))
    valid_n = meshes.interleave(valid_n[:, None], len(dataset))[:, 0]
    if not valid_n.all():
      raise UserError(
        f'{dataset.ids[~valid_n][0]} could be read when the run began, and '
        'cannot be read now. Restore it and give the same command again.'
      )
    return found_nd

  def fresh(self, seed, network=None):
    """Variables of random weights, replicated.

    Args:
      seed: of the weights.
      network: a `TwoHeads`; None = the one of the rounds.
    """
    variables = train.init(network or self.network, seed)
    return meshes.replicate(variables, self._mesh)


def _step_schedule(c, rate, steps):
  del steps
  return optim.step_schedule(rate, c.boundaries, c.factor)


def _cosine_schedule(c, rate, steps):
  return optim.cosine_schedule(rate, steps, c.warmup)


# (settings, rate, updates) -> schedule of a round.
SCHEDULES = {'step': _step_schedule, 'cosine': _cosine_schedule}


@functools.lru_cache(maxsize=8)
def _compiled(
  network,
  c,
  pretrain,
  frozen,
  steps,
  round_factor,
  target_weight,
  source_weight,
  label_smoothing,
  sharded,
  mesh,
):
  """(optimiser, step) of these settings, made once per process."""
  settings = dict(
    momentum=c.momentum, weight_decay=c.weight_decay, frozen=frozen
  )
  if pretrain is None:
    rate = c.learning_rate * round_factor
    schedule = SCHEDULES[c.schedule](c, rate, steps)
    rule, settings['to_start'] = optim.RULES[c.rule], c.to_start
  else:
    rule = optim.sgd
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
    sharded=sharded,
  )
  return optimiser, step


@functools.lru_cache(maxsize=8)
def _probabilities(network):
  def probabilities(variables, image_nhwc):
    logits_nc, _ = network.apply(
      variables, image_nhwc, image_nhwc[:0], train=False
    )
    return jax.nn.softmax(logits_nc)

  return jax.jit(probabilities)


@functools.lru_cache(maxsize=8)
def _source_answers(network):
  def answers(variables, image_nhwc):
    (_, logits_nc), kept = network.apply(
      variables,
      image_nhwc[:0],
      image_nhwc,
      train=False,
      capture_intermediates=lambda module, _: module.name == 'trunk',
      mutable=['intermediates'],
    )
    (feature_nf,) = kept['intermediates']['trunk']['__call__']
    # Half the memory: there may be a million images.
    both = jnp.concatenate([logits_nc, feature_nf], axis=1)
    return both.astype(jnp.float16)

  return jax.jit(answers)


def _pretraining_key(c, pool):
  """All that the pretrained trunk depends on, as JSON reads it back."""
  # They change joint batches only, or nothing; of weights the content counts.
  without = ('averages', 'remat', 'weights')
  settings = {
    'pretrain': c.pretrain.to_dict(),
    'model': {k: v for k, v in c.model.items() if k not in without},
    'weights': files.digest(c.model.weights) if c.model.weights else '',
    'train': {k: c.train[k] for k in ('resize', 'crop', 'mirror')},
    'optim': {k: c.optim[k] for k in ('momentum', 'weight_decay')},
    'source_weight': c.train.source_weight,
    'label_smoothing': c.train.label_smoothing,
    'data': pool.digest,
  }
  return settings


def _read(path):
  return files.read_json(path) if path.exists() else None
