"""A network and a bank that compile in a moment, in place of a run's own."""

import functools

import numpy as np

from sjft_jax import describe
from sjft_jax.models import resnet, trunks


def network(replace=setattr):
  """Has resnet26 be of two blocks in two stages."""
  two = functools.partial(resnet.ResNet, (1, 1))
  row = {'resnet26': functools.partial(trunks._residual, two)}
  replace(trunks, 'TRUNKS', trunks.TRUNKS | row)


def bank(replace=setattr):
  """Has gabor respond with the three colours."""
  replace(describe, 'BANKS', describe.BANKS | {'gabor': _colours})


def _colours(c):
  return describe.Bank(
    responses=lambda image_nhwc: [image_nhwc.astype(np.float32)],
    layer_c=np.zeros(3, np.int32),
    names=('red', 'green', 'blue'),
    resize=c.resize,
    crop=c.crop,
  )
