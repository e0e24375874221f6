"""The network of a run: pretrained, trained round by round, asked for answers.

Binds the settings to the network; `recipes` makes the optimiser and the step,
`answers` asks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sjft_jax import (
  answers,
  checkpoints,
  evaluate,
  files,
  metrics,
  optim,
  paths,
  processes,
  recipes,
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
    UserError: if the weights are of another network, if images are too small
      for it, or if `optim.frozen` names what it does not have.
  """
  learner = Learner(c, 1, 1, mesh, workdir)
  if c.model.weights:
    pretrained.load(
      c.model.weights, learner.fresh(c.seed), learner.network.convention
    )
  init = functools.partial(learner.network.init, train=False)
  sides = [c.train.crop]
  if 'dense' in (c.evaluate.views, c.hardness.views):
    sides.append(round(c.train.resize * min(c.evaluate.scales)))
  # What is too small for the network, it says when it is traced.
  for side in sides:
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    try:
      shapes = jax.eval_shape(init, jax.random.key(0), image, image)
    except (ArithmeticError, TypeError, ValueError) as error:
      raise UserError(
        f'{c.model.trunk} takes no images of {side} x {side} pixels; raise '
        'train.crop, or train.resize and evaluate.scales of dense views.'
      ) from error
  parameters = traverse_util.flatten_dict(shapes['params'])
  for pattern in c.optim.frozen:
    if not any(optim.matches(pattern, path) for path in parameters):
      parts = dict.fromkeys('/'.join(path[:2]) for path in parameters)
      raise UserError(
        f'optim.frozen names {pattern!r}, which no parameter is; there are '
        f'{", ".join(parts)}.'
      )


def teaches(c) -> bool:
  """Whether images of the source train its classifier."""
  train = c.train
  return bool(
    c.selection != 'none' and train.source_batch and train.source_weight
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
        if not directory.exists() and files.read_json(theirs, None) == key:
          with files.building(directory, trunk.name) as beside:
            files.copy_tree(donor / 'pretrain', beside)
      if trunk.exists():
        # Of a start that was killed between the two.
        paths.remove_tree(directory / 'checkpoint')
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

  def distil(self, variables, teachers, target, pool, candidates, directory):
    """Trains one network towards the average of several networks' answers.

    The teachers are asked about the very crops that the student sees: answers
    about centre crops alone would be learnt by heart. Images of the source,
    where candidates are given, are asked about as any others; their labels are
    not used.

    Args:
      variables: where the student begins.
      teachers: list of variables.
      target: the target training images.
      pool: the source, or None.
      candidates: source images that each target image draws; None = without.
      directory: its checkpoint goes there.

    Returns:
      Variables of the student.

    Source: Hinton et al., 2015, arXiv 1503.02531; for the crops, Beyer et al.,
      CVPR 2022.
    """
    c = self._c
    own = meshes.own(self._mesh)
    teachers = [meshes.localise(v, self._mesh) for v in teachers]

    def taught(batches):
      for batch in batches:
        image = np.concatenate(
          [batch['target_image'], batch['source_image']], axis=1
        )
        flat = meshes.shard(image.reshape(-1, *image.shape[2:]), own)
        every = [self.probabilities(v, flat) for v in teachers]
        soft = evaluate.fuse([meshes.fetch(answer) for answer in every])
        soft = soft.reshape(*image.shape[:2], -1).astype(np.float32)
        yield {
          'target_image': image,
          'target_label': soft.argmax(axis=-1).astype(np.int32),
          train.SOFT: soft,
          'source_image': image[:, :0],
          'source_label': batch['source_label'][:, :0],
        }

    batches = functools.partial(
      pipelines.joint,
      target,
      pool,
      candidates,
      seed=(c.seed, c.rounds),
      micro_batches=c.train.micro_batches,
      target_batch=c.train.target_batch,
      source_batch=c.train.source_batch if candidates else 0,
    )
    return self._fit(
      self.network,
      variables,
      self._frozen(distilled=True),
      batches,
      c.distill.steps,
      directory,
      c.rounds,
      taught,
    )

  def _frozen(self, distilled=False):
    """What stays as it is in the rounds."""
    # Decay alone would change a head that no image reaches.
    without = distilled or self._c.selection == 'none'
    unreached = ('source_head',) if without else ()
    return (*self._c.optim.frozen, *unreached)

  def _fit(
    self,
    network,
    variables,
    frozen,
    batches,
    steps,
    directory,
    m,
    taught=lambda batches: batches,
  ):
    """Trains from `variables`, or from where a killed run was saved."""
    c = self._c
    optimiser, step = recipes.make(c, network, frozen, m, steps, self._mesh)
    start = self._start if m >= 0 else None
    state = self._first_state(variables, optimiser, start)
    label = 'pretrain' if m < 0 else f'round {m}'
    label = 'distil' if m == c.rounds else label
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
            taught(
              batches(
                steps=steps,
                first_step=first,
                resize=c.train.resize,
                crop=c.train.crop,
                mirror=c.train.mirror,
                threads=c.threads,
                process=index,
                processes=count,
              )
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

  def restore(self, directory, distilled=False):
    """The variables that a finished round, or `distil`, left in a directory."""
    c = self._c
    steps = c.distill.steps if distilled else c.train.steps
    optimiser, _ = recipes.make(
      c, self.network, self._frozen(distilled), 0, steps, self._mesh
    )
    state = self._first_state(self.fresh(self._c.seed), optimiser)
    with checkpoints.Checkpoints(directory / 'checkpoint') as saved:
      if saved.step is None:
        raise UserError(f'{directory} holds no finished checkpoint.')
      return saved.restore(state)[0].variables

  def probabilities(self, variables, image_nhwc):
    """Target class probabilities of uint8 images, float32 [n, classes]."""
    return answers.probabilities(self.network)(variables, image_nhwc)

  def posteriors(self, variables, dataset, views, label):
    """Target class probabilities of a data set, float32 [n, classes]."""
    question = answers.probabilities(self.network)
    return self._ask(question, variables, dataset, views, label)

  def source_answers(self, variables, dataset):
    """What the network makes of source images.

    Args:
      variables: of the network.
      dataset: source images.

    Returns:
      (logits of the source classes float16 [n, classes],
       feature of the trunk float16 [n, f]).
    """
    question = answers.of_source(self.network)
    found_nd = self._ask(question, variables, dataset, 'centre', 'suspects')
    return np.split(found_nd, [self.network.source_classes], axis=1)

  def _ask(self, question, variables, dataset, views, label):
    return answers.ask(
      question, variables, dataset, self._c, self._mesh, views, label
    )

  def fresh(self, seed, network=None):
    """Variables of random weights, replicated.

    Args:
      seed: of the weights.
      network: a `TwoHeads`; None = the one of the rounds.
    """
    variables = train.init(network or self.network, seed)
    return meshes.replicate(variables, self._mesh)


def _pretraining_key(c, pool):
  """All that the pretrained trunk depends on, as JSON reads it back."""
  # They change joint batches only, or nothing; of weights the content counts.
  without = ('averages', 'remat', 'weights')
  settings = {
    'pretrain': c.pretrain.to_dict(),
    'model': {k: v for k, v in c.model.items() if k not in without},
    'weights': files.digest(c.model.weights) if c.model.weights else '',
    'train': {k: c.train[k] for k in ('resize', 'crop', 'mirror')},
    'optim': {'momentum': c.optim.momentum},
    'label_smoothing': c.train.label_smoothing,
    'data': pool.digest,
  }
  return settings
