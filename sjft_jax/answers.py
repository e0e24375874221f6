"""What a network answers when it is asked about images.

A question is a compiled function of (variables, uint8 images [n, h, w, 3]).
Networks that are equal share it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax import evaluate
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError


def ask(question, variables, dataset, c, mesh, views, label):
  """Asks about every image of a data set; every process about a share.

  Args:
    question: of this module.
    variables: of the network.
    dataset: the images.
    c: every setting.
    mesh: the devices.
    views: what is averaged over, one of `evaluate.VIEWS`.
    label: of the progress bar.

  Returns:
    The answers, [n, any], the same in every process.

  Raises:
    UserError: if an image cannot be read any more.
  """
  index, count = meshes.share()
  variables = meshes.localise(variables, mesh)
  found_nd, valid_n = evaluate.over_views(
    functools.partial(question, variables),
    dataset.subset(np.arange(index, len(dataset), count)),
    resize=c.train.resize,
    crop=c.train.crop,
    batch=c.evaluate.batch,
    mesh=meshes.own(mesh),
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


@functools.lru_cache(maxsize=8)
def probabilities(network):
  """The question for target class probabilities, float32 [n, classes]."""

  def answer(variables, image_nhwc):
    logits_nc, _ = network.apply(
      variables, image_nhwc, image_nhwc[:0], train=False
    )
    return jax.nn.softmax(logits_nc)

  return jax.jit(answer)


@functools.lru_cache(maxsize=8)
def of_source(network):
  """The question for source logits, then the feature, float16 [n, c + f]."""

  def answer(variables, image_nhwc):
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

  return jax.jit(answer)
