"""The trunks that a run can choose: residual, or plain convolutions.

A trunk is a Linen module from images to one pooled feature per image; another
is another row in `TRUNKS`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sjft_jax import mesh
from sjft_jax.models import bit, conv_bank, frozen, resnet

# Whose images a micro-batch's statistics are of -> axis they are averaged over.
STATISTICS = {'global': mesh.AXIS, 'device': None}

# Of an image that nothing responds to: its feature stays 0.
_LEAST_SQUARE = 1e-6


class Plain(nn.Module):
  """A network of convolutions and pools up to the mean of its last map.

  Without batch normalisation that mean is as large as the weights make it: 34
  gray values, and up to 746, of SqueezeNet's. A fresh classifier on it drowns
  the trunk in gradient, so it is scaled to a mean square of 1.

  Attributes:
    network: the layers; its arrays have the names of its weight files.
    dtype: of the arithmetic. Parameters are float32.
  """

  network: frozen.Network
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, image_nhwc: jax.Array, train: bool, averaged: slice | None = None
  ) -> jax.Array:
    """Returns float32 [n, f], f the channels of the last layer, scaled.

    Args:
      image_nhwc: model input, float32 [n, h, w, 3].
      train: no difference, without batch normalisation.
      averaged: nothing is.
    """
    del train, averaged
    arrays = {
      name: tuple(x.astype(self.dtype) for x in _Arrays(shapes, name=name)())
      for name, shapes in self.network.shapes().items()
    }
    x = image_nhwc.astype(self.dtype)
    *_, (_, _, x) = self.network.responses(x, arrays)
    x_nf = x.mean(axis=(1, 2), dtype=jnp.float32)
    square_n1 = (x_nf**2).mean(axis=1, keepdims=True)
    return x_nf * jax.lax.rsqrt(square_n1 + _LEAST_SQUARE)


class _Arrays(nn.Module):
  """Kernel and bias of a convolution."""

  shapes: tuple[tuple[int, ...], tuple[int, ...]]

  @nn.compact
  def __call__(self):
    kernel, bias = self.shapes
    return (
      self.param('kernel', nn.initializers.he_normal(), kernel),
      self.param('bias', nn.initializers.zeros, bias),
    )


def _residual(make, c):
  return make(
    width=c.width,
    stem=c.stem,
    variant=c.variant,
    momentum=c.momentum,
    dtype=c.dtype,
    remat=c.remat,
    axis_name=STATISTICS[c.statistics],
  )


def _bit(make, c):
  return make(width=c.width, stem=c.stem, dtype=c.dtype, remat=c.remat)


# Functions of the settings `model` to a trunk.
TRUNKS = (
  {n: functools.partial(_residual, make) for n, make in resnet.TRUNKS.items()}
  | {n: functools.partial(_bit, make) for n, make in bit.TRUNKS.items()}
  | {
    name: lambda c, network=network: Plain(network, dtype=c.dtype)
    for name, network in conv_bank.NETWORKS.items()
  }
)
