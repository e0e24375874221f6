"""Residual trunks: identity mappings as the Caffe release, or v1.5.

A trunk is a Linen module from images to one pooled feature per image. Another
trunk is another such module and a row in `TRUNKS`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sjft_jax.models.convolutions import convolve, pointwise

_EPSILON = 1e-5
_he_normal = nn.initializers.he_normal()

# First convolution's side and stride, and whether the pool follows.
STEMS = {
  'imagenet': (7, 2, True),
  'strided': (3, 2, False),
  'small': (3, 1, False),
}


def max_pool_ceil(x_nhwc: jax.Array) -> jax.Array:
  """Maximum over 3 x 3 windows with stride 2, cut windows included.

  out = ceil((in - 3) / 2) + 1 for height and width: 112 becomes 56.

  Args:
    x_nhwc: floating point [n, h, w, c], sides of at least 2.

  Returns:
    Maxima, [n, ceil((h - 3) / 2) + 1, ceil((w - 3) / 2) + 1, c].

  Source: Caffe's pooling without padding, as the release has it.
  """
  beyond = tuple((0, 1 - size % 2) for size in x_nhwc.shape[1:3])
  return _max_pool(x_nhwc, beyond)


class BatchNorm(nn.Module):
  """Batch normalisation with Caffe's running averages.

  w <- m w + 1;  average <- average + (batch - average) / w

  so that the first batches are not mixed with an arbitrary start, and w
  settles at 1 / (1 - m). The variance is averaged without bias. Statistics
  are float32 whatever the dtype.

  Attributes:
    train: normalise by the batch and update the averages.
    momentum: m, what an average keeps at a batch.
    averaged: the images of the batch that enter the averages; None = all.
    axis_name: axis of `shard_map` over which a batch's statistics are those of
      all devices; None = of each device's own images.

  Source: Caffe's BatchNorm and Scale layers, eps 1e-5.
  """

  train: bool
  momentum: float
  averaged: slice | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Normalises the last axis; same shape and dtype."""
    c, dtype = x_nhwc.shape[-1], x_nhwc.dtype
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    average = functools.partial(self.variable, 'batch_stats')
    mean = average('mean', jnp.zeros, (c,))
    var = average('var', jnp.ones, (c,))
    weight = average('weight', jnp.zeros, ())
    x_nhwc = x_nhwc.astype(jnp.float32)
    mean_c, var_c = mean.value, var.value
    if self.train:
      mean_c, var_c = _moments(x_nhwc, self.axis_name)
      if not self.is_initializing():
        some_nhwc, some = x_nhwc, (mean_c, var_c)
        if self.averaged is not None:
          some_nhwc = jax.lax.stop_gradient(x_nhwc[self.averaged])
          some = _moments(some_nhwc, self.axis_name)
        m = some_nhwc.size // c
        if self.axis_name:
          m *= jax.lax.axis_size(self.axis_name)
        # Converted averages come with the weight of a longer memory.
        kept = jnp.minimum(weight.value, 1 / (1 - self.momentum))
        weight.value = self.momentum * kept + 1.0
        mean.value += (some[0] - mean.value) / weight.value
        unbiased_c = some[1] * (m / max(m - 1, 1))
        var.value += (unbiased_c - var.value) / weight.value
    gain_c = scale * jax.lax.rsqrt(var_c + _EPSILON)
    shift_c = bias - mean_c * gain_c
    y_nhwc = x_nhwc * _per_channel(gain_c) + _per_channel(shift_c)
    return y_nhwc.astype(dtype)


def max_pool_padded(x_nhwc: jax.Array) -> jax.Array:
  """Maximum over 3 x 3 windows with stride 2, one pixel beyond every side.

  out = floor((in - 1) / 2) + 1 for height and width: 112 becomes 56.

  Args:
    x_nhwc: floating point [n, h, w, c].

  Returns:
    Maxima, [n, floor((h - 1) / 2) + 1, floor((w - 1) / 2) + 1, c].

  Source: torchvision's ResNet.
  """
  return _max_pool(x_nhwc, ((1, 1), (1, 1)))


def _max_pool(x_nhwc, padding):
  """Maxima of 3 x 3 windows with stride 2, after padding with -inf."""
  if jax.default_backend() != 'cpu':
    return nn.max_pool(x_nhwc, (3, 3), (2, 2), padding=padding)
  # The gradient of XLA's own takes CPUs three to ten times as long.
  x_nhwc = jnp.pad(x_nhwc, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
  for axis in (1, 2):
    last = x_nhwc.shape[axis] - 2
    first, *others = (
      jax.lax.slice_in_dim(x_nhwc, i, last + i, stride=2, axis=axis)
      for i in range(3)
    )
    for other in others:
      first = jnp.where(first >= other, first, other)
    x_nhwc = first
  return x_nhwc


def _moments(x_nhwc, axis_name):
  """Mean and biased variance of every channel."""
  x_mc = x_nhwc.reshape(-1, x_nhwc.shape[-1])
  moments = x_mc.mean(axis=0), jnp.square(x_mc).mean(axis=0)
  if axis_name:
    moments = jax.lax.pmean(moments, axis_name)
  mean_c, square_c = moments
  return mean_c, jnp.maximum(square_c - mean_c**2, 0.0)


def _per_channel(x_c):
  return x_c[None, None, None]


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions added to the raw sum before them.

  Attributes:
    features: kernels of the two inner convolutions; the sum has four times
      as many channels.
    stride: of the first 1 x 1 convolution and of the projection.
    project: the identity path is a 1 x 1 convolution, as every stage begins.
    activate: the input is a raw sum, to be normalised and rectified first;
      not so after the stem.
    norm: makes a batch normalisation.
    dtype: of the arithmetic.

  Source: the released train_val.prototxt; He et al., ECCV 2016.
  """

  features: int
  stride: int
  project: bool
  activate: bool
  norm: type[nn.Module] | functools.partial
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Returns the next raw sum, [n, h / stride, w / stride, 4 features]."""
    conv = functools.partial(_convolution, dtype=self.dtype)
    x, sum_ = x_nhwc, x_nhwc
    if self.activate:
      x = nn.relu(self.norm(name='norm')(x))
    x = x[:, :: self.stride, :: self.stride]
    if self.project:
      sum_ = conv(4 * self.features, name='branch1')(x)
    x = conv(self.features, name='branch2a')(x)
    x = nn.relu(self.norm(name='norm2a')(x))
    x = conv(self.features, 3, name='branch2b')(x)
    x = nn.relu(self.norm(name='norm2b')(x))
    return sum_ + conv(4 * self.features, name='branch2c')(x)


class PostBottleneck(nn.Module):
  """The v1.5 block: every convolution normalised, the sum rectified.

  Attributes:
    features: as `Bottleneck`.
    stride: of the 3 x 3 convolution and of the projection.
    project: as `Bottleneck`.
    norm: as `Bottleneck`.
    dtype: as `Bottleneck`.

  Source: He et al., CVPR 2016; the stride as in torchvision and timm.
  """

  features: int
  stride: int
  project: bool
  norm: type[nn.Module] | functools.partial
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Returns the rectified sum, [n, h / stride, w / stride, 4 features]."""
    conv = functools.partial(_convolution, dtype=self.dtype)
    x, identity = x_nhwc, x_nhwc
    if self.project:
      strided = x_nhwc[:, :: self.stride, :: self.stride]
      identity = conv(4 * self.features, name='branch1')(strided)
      identity = self.norm(name='norm1')(identity)
    x = conv(self.features, name='branch2a')(x)
    x = nn.relu(self.norm(name='norm2a')(x))
    x = conv(self.features, 3, self.stride, name='branch2b')(x)
    x = nn.relu(self.norm(name='norm2b')(x))
    x = conv(4 * self.features, name='branch2c')(x)
    return nn.relu(identity + self.norm(name='norm2c')(x))


# Block, pool, and whether sums are raw: normalised by whoever reads them.
VARIANTS = {
  'caffe': (Bottleneck, max_pool_ceil, True),
  'v1.5': (PostBottleneck, max_pool_padded, False),
}


class ResNet(nn.Module):
  """Bottleneck ResNet up to its pooled feature.

  Attributes:
    stage_sizes: blocks of stages 2, 3, 4 and 5.
    width: multiplies the kernels of every layer; 0.5 is half of them.
    stem: row of STEMS. 'imagenet' is 7x7/2 and the pool, 'strided' 3x3/2,
      'small' 3x3.
    variant: row of VARIANTS. 'caffe' has identity mappings and is the
      release's; 'v1.5' is what torchvision's and timm's weights need.
    momentum: of batch normalisation's running averages, per micro-batch.
    dtype: of the arithmetic. Parameters and statistics are float32.
    remat: keep the blocks' sums only, and compute what is within a block again
      for its gradient.
    axis_name: of batch normalisation, see `BatchNorm`.

  Source: Ge & Yu, CVPR 2017, the released train_val.prototxt (ResNet-152);
  width 0.5 and ResNet-50 from the paper's ablation.
  """

  stage_sizes: tuple[int, ...]
  width: float = 1.0
  stem: str = 'imagenet'
  variant: str = 'caffe'
  momentum: float = 0.999
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    image_nhwc: jax.Array,
    train: bool,
    averaged: slice | None = None,
  ) -> jax.Array:
    """Returns float32 [n, f], f = 2048 width for four stages.

    Args:
      image_nhwc: model input, float32 [n, h, w, 3].
      train: batch statistics if true, else the running averages.
      averaged: the images that enter the running averages in training; None =
        all.
    """
    if self.stem not in STEMS:
      raise ValueError(f'One of {sorted(STEMS)}: {self.stem=}.')
    if self.variant not in VARIANTS:
      raise ValueError(f'One of {sorted(VARIANTS)}: {self.variant=}.')
    side, stride, pool = STEMS[self.stem]
    make_block, max_pool, raw = VARIANTS[self.variant]
    make_block = nn.remat(make_block) if self.remat else make_block
    norm = functools.partial(
      BatchNorm, train, self.momentum, averaged, self.axis_name
    )
    features = round(64 * self.width)
    conv1 = _convolution(features, side, stride, dtype=self.dtype, name='conv1')
    x = nn.relu(norm(name='norm1')(conv1(image_nhwc)))
    if pool:
      x = max_pool(x)
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        reads_sum = {'activate': stage > 0 or block > 0} if raw else {}
        x = make_block(
          features * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          project=block == 0,
          **reads_sum,
          norm=norm,
          dtype=self.dtype,
          name=f'res{stage + 2}_{block}',
        )(x)
    if raw:
      x = nn.relu(norm(name='norm5')(x))
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def _convolution(features, side=1, stride=1, *, dtype, name):
  """A convolution without bias that keeps h and w but for the stride."""
  shared = dict(use_bias=False, kernel_init=_he_normal, dtype=dtype, name=name)
  if side == 1:
    # As a product a 1 x 1 convolution is twice as fast on CPUs.
    return nn.Dense(features, dot_general=_pointwise, **shared)
  return nn.Conv(
    features,
    (side, side),
    (stride, stride),
    padding=side // 2,
    conv_general_dilated=convolve,
    **shared,
  )


def _pointwise(x_nhwc, kernel_io, dimensions, **options):
  """`pointwise` as `nn.Dense` asks for its product."""
  del dimensions, options  # the last axis by the first, at default precision
  return pointwise(x_nhwc, kernel_io)


TRUNKS = {
  'resnet26': functools.partial(ResNet, (2, 2, 2, 2)),
  'resnet50': functools.partial(ResNet, (3, 4, 6, 3)),
  'resnet101': functools.partial(ResNet, (3, 4, 23, 3)),
  'resnet152': functools.partial(ResNet, (3, 8, 36, 3)),
}
