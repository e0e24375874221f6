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
  if not any(
    path[0] != 'source_head'
    and not any(optim.matches(pattern, path) for pattern in c.optim.frozen)
    for path in parameters
  ):
    raise UserError(
      'optim.frozen leaves nothing of the network to learn; came '
      f'{", ".join(c.optim.frozen)}: name less.'
    )


def trains_source_head(c) -> bool:
  """Whether images of the source train its classifier."""
  train = c.train
  return bool(
    c.selection != 'none' and train.source_batch and train.source_weight
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stage:
  """One stretch of training: pretraining, a round or distillation.

  Attributes:
    label: what TensorBoard and the progress bar call it.
    number: its place in the order of all, `round` in metrics.jsonl.
    recipe: how it learns.
    steps: updates.
    seed: of the batches.
    micro_batches: of an update.
    target_batch: target images of a micro-batch.
    source_batch: source images of a micro-batch.
  """

  label: str
  number: int
  recipe: recipes.Recipe
  steps: int
  seed: tuple[int, ...]
  micro_batches: int
  target_batch: int
  source_batch: int

  @property
  def examples(self):
    """Of an update: pairs, or images where one half is empty."""
    return self.micro_batches * max(self.target_batch, self.source_batch)


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
      files.adopt(
        directory,
        trunk.name,
        [donor / 'pretrain' for donor in donors],
        lambda donor: files.read_json(donor / 'key.json', None) == key,
      )
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
    stage = _Stage(
      label='pretrain',
      number=-1,
      recipe=recipes.pretraining(self._c, ('target_head',)),
      steps=c.steps,
      seed=(c.seed,),
      micro_batches=1,
      target_batch=0,
      source_batch=c.batch,
    )
    make_batches = functools.partial(pipelines.joint, None, pool, None)
    return self._fit(stage, network, variables, make_batches, directory)

  def fine_tune(
    self, start, variables, target, pool, candidates, level_q, m, directory
  ):
    """Trains one round, from where a killed one was saved.

    Args:
      start: variables that the first round began with; L2-SP decays to them.
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
    stage = self._stage(m, candidates)
    make_batches = functools.partial(
      pipelines.joint,
      target,
      pool,
      candidates,
      level_q=level_q,
      most_per_label=self._c.train.most_per_label,
    )
    return self._fit(
      stage, self.network, variables, make_batches, directory, start
    )

  def distil(
    self, start, variables, teachers, target, pool, candidates, directory
  ):
    """Trains one network towards the average of several networks' answers.

    The teachers are asked about the very crops that the student sees: answers
    about centre crops alone would be learnt by heart. Images of the source,
    where candidates are given, are asked about as any others; their labels are
    not used.

    Args:
      start: as in `fine_tune`.
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

    # It comes after the rounds, as one more.
    stage = self._stage(self._c.rounds, candidates, distilled=True)
    make_batches = functools.partial(pipelines.joint, target, pool, candidates)
    return self._fit(
      stage, self.network, variables, make_batches, directory, start, taught
    )

  def _stage(self, m, candidates, distilled=False):
    """Round m, or the distillation of those before it."""
    c = self._c
    # Decay alone would change a head that no image reaches.
    without = distilled or c.selection == 'none'
    unreached = ('source_head',) if without else ()
    frozen = (*c.optim.frozen, *unreached)
    steps = c.distill.steps if distilled else c.train.steps
    return _Stage(
      label='distilled' if distilled else f'round_{m}',
      number=m,
      recipe=recipes.fine_tuning(c, frozen, steps, m),
      steps=steps,
      seed=(c.seed, m),
      micro_batches=c.train.micro_batches,
      target_batch=c.train.target_batch,
      source_batch=c.train.source_batch if candidates else 0,
    )

  def _fit(
    self,
    stage,
    network,
    variables,
    make_batches,
    directory,
    start=None,
    taught=lambda batches: batches,
  ):
    """Trains from `variables`, or from where a killed run was saved."""
    c = self._c
    state = self._first_state(variables, stage, start)
    index, count = meshes.share()

    def save(n, state):
      # Before the checkpoint by which a killed run goes on behind them.
      write.sync()
      # Counted over all processes, so that another number of them goes on with
      # the same batches.
      meta = {'round': stage.number, 'examples': n * stage.examples}
      saved.save(n, state, meta)

    with (
      processes.together(),
      checkpoints.Checkpoints(directory / 'checkpoint') as saved,
    ):
      first = 0
      if saved.step is not None:
        state, meta = saved.restore(state)
        first = meta['examples'] // stage.examples
      if first < stage.steps:
        with metrics.Writer(
          self._workdir, stage.label, stage.number, first
        ) as write:
          state = train.fit(
            state,
            recipes.step(c, network, stage.recipe, self._mesh),
            taught(
              make_batches(
                seed=stage.seed,
                steps=stage.steps,
                first_step=first,
                micro_batches=stage.micro_batches,
                target_batch=stage.target_batch,
                source_batch=stage.source_batch,
                resize=c.train.resize,
                crop=c.train.crop,
                mirror=c.train.mirror,
                threads=c.threads,
                process=index,
                processes=count,
              )
            ),
            first=first,
            steps=stage.steps,
            mesh=self._mesh,
            write=write,
            save=save,
            save_every=c.train.checkpoint_every,
            label=stage.label,
          )
    return state.variables

  def _first_state(self, variables, stage, start=None):
    return train.begin(
      variables,
      stage.recipe.optimiser,
      self._mesh,
      start and start['params'],
      sharded=self._c.train.sharded,
    )

  def restore(self, directory, distilled=False):
    """The variables that a finished round, or `distil`, left in a directory."""
    # The states of all rounds have one structure.
    stage = self._stage(0, None, distilled)
    state = self._first_state(self.fresh(self._c.seed), stage)
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
