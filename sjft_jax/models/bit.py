"""BiT trunks: residual, with standardised kernels and group normalisation.

No image sees another, so that statistics need neither large batches nor
running averages.

Source: Kolesnikov et al., "Big Transfer", ECCV 2020, and the released weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sjft_jax.models.convolutions import convolve, pointwise
from sjft_jax.models.resnet import STEMS

_GROUPS = 32
_he_normal = nn.initializers.he_normal()


class StandardConv(nn.Module):
  """A convolution whose kernels have mean 0 and variance 1 over their taps.

  Attributes:
    features: kernels.
    side: of the kernels; h and w are kept but for the stride.
    stride: pixels from one response to the next.
    dtype: of the arithmetic.

  Source: Qiao et al., "Weight Standardization", 2019; epsilon 1e-10 as BiT's.
  """

  features: int
  side: int = 1
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Responses [n, h / stride, w / stride, features]."""
    taps = (self.side, self.side) if self.side > 1 else ()
    shape = (*taps, x_nhwc.shape[-1], self.features)
    kernel = self.param('kernel', _he_normal, shape)
    over = tuple(range(len(shape) - 1))
    kernel -= kernel.mean(axis=over, keepdims=True)
    variance = jnp.square(kernel).mean(axis=over, keepdims=True)
    kernel = (kernel * jax.lax.rsqrt(variance + 1e-10)).astype(self.dtype)
    x_nhwc = x_nhwc.astype(self.dtype)
    if self.side == 1:
      # As a product a 1 x 1 convolution is twice as fast on CPUs.
      return pointwise(x_nhwc[:, :: self.stride, :: self.stride], kernel)
    padding = ((self.side // 2,) * 2,) * 2
    strides = (self.stride, self.stride)
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return convolve(x_nhwc, kernel, strides, padding, dimension_numbers=numbers)


class Block(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions added to the raw sum before them.

  Attributes:
    features: kernels of the two inner convolutions; the sum has four times
      as many channels.
    stride: of the 3 x 3 convolution and of the projection.
    project: the identity path is a 1 x 1 convolution, as every stage begins.
    dtype: of the arithmetic.
  """

  features: int
  stride: int
  project: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Returns the next raw sum, [n, h / stride, w / stride, 4 features]."""
    conv = functools.partial(StandardConv, dtype=self.dtype)
    wide = 4 * self.features
    x, sum_ = _activated(x_nhwc, 'norm'), x_nhwc
    if self.project:
      sum_ = conv(wide, stride=self.stride, name='branch1')(x)
    x = conv(self.features, name='branch2a')(x)
    x = _activated(x, 'norm2a')
    x = conv(self.features, 3, self.stride, name='branch2b')(x)
    x = _activated(x, 'norm2b')
    return sum_ + conv(wide, name='branch2c')(x)


class BiT(nn.Module):
  """A BiT ResNet up to its pooled feature.

  Attributes:
    stage_sizes: blocks of stages 2, 3, 4 and 5.
    width: multiplies the kernels of every layer: 3 for R50x3.
    stem: row of `resnet.STEMS`.
    dtype: of the arithmetic. Parameters and statistics are float32.
    remat: as `resnet.ResNet`.
  """

  stage_sizes: tuple[int, ...]
  width: float = 1.0
  stem: str = 'imagenet'
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, image_nhwc: jax.Array, train: bool, averaged: slice | None = None
  ) -> jax.Array:
    """Returns float32 [n, f], f = 2048 width for four stages.

    Args:
      image_nhwc: model input, float32 [n, h, w, 3].
      train: no difference, without batch normalisation.
      averaged: nothing is.
    """
    del train, averaged
    if self.stem not in STEMS:
      raise ValueError(f'One of {sorted(STEMS)}: {self.stem=}.')
    side, stride, pool = STEMS[self.stem]
    features = round(64 * self.width)
    conv1 = StandardConv(features, side, stride, self.dtype, name='conv1')
    x = conv1(image_nhwc)
    if pool:
      # One pixel of zeros, unlike the other variants.
      x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      x = nn.max_pool(x, (3, 3), (2, 2))
    make_block = nn.remat(Block) if self.remat else Block
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        x = make_block(
          features * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          project=block == 0,
          dtype=self.dtype,
          name=f'res{stage + 2}_{block}',
        )(x)
    x = _activated(x, 'norm5')
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def _activated(x_nhwc, name):
  """Normalised in groups of channels, in float32, and rectified."""
  norm = nn.GroupNorm(
    # As many groups as divide narrow layers.
    math.gcd(_GROUPS, x_nhwc.shape[-1]),
    epsilon=1e-5,
    dtype=jnp.float32,
    use_fast_variance=False,
    name=name,
  )
  return nn.relu(norm(x_nhwc)).astype(x_nhwc.dtype)


TRUNKS = {
  'bit_r50': functools.partial(BiT, (3, 4, 6, 3)),
  'bit_r101': functools.partial(BiT, (3, 4, 23, 3)),
  'bit_r152': functools.partial(BiT, (3, 8, 36, 3)),
}
