"""The network of a run: pretrained, trained round by round, asked for answers.

Binds the settings to the network, the optimiser and the step. Runs with equal
settings in one process share what was compiled.
"""

import functools
import pathlib
import shutil

import jax
from ml_collections import FrozenConfigDict

from sjft_jax import checkpoints, evaluate, files, metrics, optim, train
from sjft_jax import mesh as meshes
from sjft_jax.data import pipelines
from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, resnet, two_heads


class Learner:
  """What a run knows about its network.

  Args:
    c: every setting.
    target_classes: outputs of the target classifier.
    source_classes: outputs of the source classifier; 0 without a source.
    mesh: the devices.
    workdir: directory of the run, for metrics.

  Raises:
    UserError: if there is no such trunk.
  """

  def __init__(self, c, target_classes, source_classes, mesh, workdir):
    if c.model.trunk not in resnet.TRUNKS:
      raise UserError(
        f'model.trunk is one of {", ".join(resnet.TRUNKS)}, '
        f'not {c.model.trunk!r}.'
      )
    self._c, self._mesh, self._workdir = c, mesh, pathlib.Path(workdir)
    self._network = two_heads.TwoHeads(
      trunk=resnet.TRUNKS[c.model.trunk](
        width=c.model.width,
        stem=c.model.stem,
        momentum=c.model.momentum,
        dtype=c.model.dtype,
      ),
      target_classes=target_classes,
      # A head that nothing reaches, where there is no source.
      source_classes=max(source_classes, 1),
    )

  def check(self):
    """Refuses weights of another network, before hours of search."""
    if self._c.model.weights:
      pretrained.load(self._c.model.weights, self._fresh(self._c.seed))

  def start(self, pool, directory, donors=()):
    """The weights of the first round: the trunk as configured, heads fresh.

    Args:
      pool: the source, for pretraining; None where there is none.
      directory: where pretraining leaves trunk.safetensors.
      donors: directories of runs whose pretraining is taken over if it had
        the same data and settings.

    Returns:
      Variables: 'params' and 'batch_stats', replicated.
    """
    c = self._c
    variables = self._fresh(c.seed)
    if not c.pretrain.steps:
      weights = c.model.weights
      return pretrained.load(weights, variables) if weights else variables
    key = _pretraining_key(c, pool)
    for donor in donors:
      theirs = donor / 'pretrain' / 'key.json'
      if not directory.exists() and _read(theirs) == key:
        with files.building(directory) as beside:
          shutil.copytree(donor / 'pretrain', beside)
    trunk = directory / 'trunk.safetensors'
    if not trunk.exists():
      trained = self._pretrain(pool, directory)
      # First, so that whoever finds the trunk finds what it depends on.
      files.write_json(directory / 'key.json', key)
      pretrained.save(trunk, trained)
      # Only a restart in the middle needs it.
      shutil.rmtree(directory / 'checkpoint')
    return pretrained.load(trunk, variables)

  def _pretrain(self, pool, directory):
    """Variables after training on the source alone."""
    c = self._c.pretrain
    variables = self._fresh(c.seed)
    if self._c.model.weights:
      variables = pretrained.load(self._c.model.weights, variables)
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
    return self._fit(variables, 'target_head', batches, c.steps, directory, -1)

  def fine_tune(self, variables, target, pool, candidates, m, directory):
    """Trains one round, from where a killed one was saved.

    Args:
      variables: of the round before.
      target: the target training images.
      pool: the source, or None.
      candidates: which source images each target image draws; None for none.
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
    )
    # Decay alone would change a head that no image reaches.
    frozen = None if candidates else 'source_head'
    return self._fit(variables, frozen, batches, c.train.steps, directory, m)

  def _fit(self, variables, frozen, batches, steps, directory, m):
    """Trains from `variables`, or from where a killed run was saved."""
    c = self._c
    optimiser, step = _compiled(
      self._network,
      FrozenConfigDict(c.optim),
      FrozenConfigDict(c.pretrain) if m < 0 else None,
      frozen,
      c.train.target_weight,
      c.train.source_weight,
      self._mesh,
    )
    state = train.begin(variables, optimiser, self._mesh)
    label = 'pretrain' if m < 0 else f'round {m}'
    with checkpoints.Checkpoints(directory / 'checkpoint') as saved:
      if saved.step is not None:
        state, _ = saved.restore(state)
      first = saved.step or 0
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
            ),
            first=first,
            steps=steps,
            mesh=self._mesh,
            write=write,
            save=lambda n, state: saved.save(n, state, {'round': m}),
            save_every=c.train.checkpoint_every,
            label=label,
          )
    return state.variables

  def restore(self, directory):
    """The variables that a finished round left in its directory."""
    c = self._c
    optimiser, _ = _compiled(
      self._network,
      FrozenConfigDict(c.optim),
      None,
      None if c.selection != 'none' else 'source_head',
      c.train.target_weight,
      c.train.source_weight,
      self._mesh,
    )
    state = train.begin(self._fresh(c.seed), optimiser, self._mesh)
    with checkpoints.Checkpoints(directory / 'checkpoint') as saved:
      if saved.step is None:
        raise UserError(f'{directory} holds no finished checkpoint.')
      return saved.restore(state)[0].variables

  def probabilities(self, variables, image_nhwc):
    """Target class probabilities of uint8 images, float32 [n, classes]."""
    return _probabilities(self._network)(variables, image_nhwc)

  def posteriors(self, variables, dataset, label):
    """Target class probabilities of a data set, float32 [n, classes]."""
    c = self._c
    probability_nc, valid_n = evaluate.posteriors(
      functools.partial(self.probabilities, variables),
      dataset,
      resize=c.train.resize,
      crop=c.train.crop,
      batch=c.evaluate.batch,
      mesh=self._mesh,
      threads=c.threads,
      label=label,
    )
    if not valid_n.all():
      raise UserError(
        f'{dataset.ids[~valid_n][0]} could be read when the run began, and '
        'cannot be read now. Restore it and give the same command again.'
      )
    return probability_nc

  def _fresh(self, seed):
    variables = train.init(self._network, seed)
    return meshes.replicate(variables, self._mesh)


@functools.lru_cache(maxsize=8)
def _compiled(network, c, pretrain, frozen, target_weight, source_weight, mesh):
  """(optimiser, step) of these settings, made once per process."""
  if pretrain is None:
    schedule = optim.step_schedule(c.learning_rate, c.boundaries, c.factor)
  else:
    schedule = optim.cosine_schedule(
      pretrain.learning_rate, pretrain.steps, pretrain.warmup
    )
  optimiser = optim.sgd(
    schedule,
    momentum=c.momentum,
    weight_decay=c.weight_decay,
    frozen=() if frozen is None else (frozen,),
  )
  step = train.make_step(
    network,
    optimiser,
    schedule,
    mesh,
    target_weight=target_weight,
    source_weight=source_weight,
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


def _pretraining_key(c, pool):
  """All that the pretrained trunk depends on, as JSON reads it back."""
  settings = {
    'pretrain': c.pretrain.to_dict(),
    'model': c.model.to_dict(),
    'train': {k: c.train[k] for k in ('resize', 'crop', 'mirror')},
    'optim': {k: c.optim[k] for k in ('momentum', 'weight_decay')},
    'source_weight': c.train.source_weight,
    'data': pool.digest,
  }
  return settings


def _read(path):
  return files.read_json(path) if path.exists() else None
