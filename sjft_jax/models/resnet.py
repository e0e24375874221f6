"""Residual trunks with identity mappings, wired as the Caffe release.

A trunk is a Linen module from images to one pooled feature per image. Another
trunk is another such module and a row in `TRUNKS`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

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
  return nn.max_pool(x_nhwc, (3, 3), (2, 2), padding=beyond)


class BatchNorm(nn.Module):
  """Batch normalisation with Caffe's running averages.

  w <- m w + 1;  average <- average + (batch - average) / w

  so that the first batches are not mixed with an arbitrary start, and w
  settles at 1 / (1 - m). The variance is averaged without bias. Statistics
  are float32 whatever the dtype, over the whole of a batch that is sharded.

  Attributes:
    train: normalise by the batch and update the averages.
    momentum: m, what an average keeps at a batch.

  Source: Caffe's BatchNorm and Scale layers, eps 1e-5.
  """

  train: bool
  momentum: float

  @nn.compact
  def __call__(self, x_nhwc: jax.Array) -> jax.Array:
    """Normalises the last axis; same shape and dtype."""
    c = x_nhwc.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    average = functools.partial(self.variable, 'batch_stats')
    mean = average('mean', jnp.zeros, (c,))
    var = average('var', jnp.ones, (c,))
    weight = average('weight', jnp.zeros, ())
    x_mc = x_nhwc.astype(jnp.float32).reshape(-1, c)
    mean_c, var_c = mean.value, var.value
    if self.train:
      m = x_mc.shape[0]
      mean_c = x_mc.mean(axis=0)
      var_c = jnp.maximum(jnp.square(x_mc).mean(axis=0) - mean_c**2, 0.0)
      if not self.is_initializing():
        weight.value = self.momentum * weight.value + 1.0
        mean.value += (mean_c - mean.value) / weight.value
        unbiased_c = var_c * (m / max(m - 1, 1))
        var.value += (unbiased_c - var.value) / weight.value
    gain_c = scale * jax.lax.rsqrt(var_c + _EPSILON)
    y_mc = x_mc * gain_c[None] + (bias - mean_c * gain_c)[None]
    return y_mc.reshape(x_nhwc.shape).astype(x_nhwc.dtype)


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
    # As a product a 1 x 1 convolution is twice as fast on CPUs.
    pointwise = functools.partial(
      nn.Dense, use_bias=False, kernel_init=_he_normal, dtype=self.dtype
    )
    x, sum_ = x_nhwc, x_nhwc
    if self.activate:
      x = nn.relu(self.norm(name='norm')(x))
    x = x[:, :: self.stride, :: self.stride]
    if self.project:
      sum_ = pointwise(4 * self.features, name='branch1')(x)
    x = pointwise(self.features, name='branch2a')(x)
    x = nn.relu(self.norm(name='norm2a')(x))
    x = nn.Conv(
      self.features,
      (3, 3),
      padding=1,
      use_bias=False,
      kernel_init=_he_normal,
      dtype=self.dtype,
      name='branch2b',
    )(x)
    x = nn.relu(self.norm(name='norm2b')(x))
    return sum_ + pointwise(4 * self.features, name='branch2c')(x)


class ResNet(nn.Module):
  """Pre-activation bottleneck ResNet up to its pooled feature.

  Attributes:
    stage_sizes: blocks of stages 2, 3, 4 and 5.
    width: multiplies the kernels of every layer; 0.5 is half of them.
    stem: row of STEMS. 'imagenet' is 7x7/2 and the pool, 'strided' 3x3/2,
      'small' 3x3.
    momentum: of batch normalisation's running averages, per micro-batch.
    dtype: of the arithmetic. Parameters and statistics are float32.

  Source: Ge & Yu, CVPR 2017, the released train_val.prototxt (ResNet-152);
  width 0.5 and ResNet-50 from the paper's ablation.
  """

  stage_sizes: tuple[int, ...]
  width: float = 1.0
  stem: str = 'imagenet'
  momentum: float = 0.999
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image_nhwc: jax.Array, train: bool) -> jax.Array:
    """Returns float32 [n, f], f = 2048 width for four stages.

    Args:
      image_nhwc: model input, float32 [n, h, w, 3].
      train: batch statistics if true, else the running averages.
    """
    if self.stem not in STEMS:
      raise ValueError(f'One of {sorted(STEMS)}: {self.stem=}.')
    side, stride, pool = STEMS[self.stem]
    norm = functools.partial(BatchNorm, train, self.momentum)
    features = round(64 * self.width)
    x = nn.Conv(
      features,
      (side, side),
      (stride, stride),
      padding=side // 2,
      use_bias=False,
      kernel_init=_he_normal,
      dtype=self.dtype,
      name='conv1',
    )(image_nhwc)
    x = nn.relu(norm(name='norm1')(x))
    if pool:
      x = max_pool_ceil(x)
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        x = Bottleneck(
          features * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          project=block == 0,
          activate=stage > 0 or block > 0,
          norm=norm,
          dtype=self.dtype,
          name=f'res{stage + 2}_{block}',
        )(x)
    x = nn.relu(norm(name='norm5')(x))
    return x.mean(axis=(1, 2), dtype=jnp.float32)


TRUNKS = {
  'resnet26': functools.partial(ResNet, (2, 2, 2, 2)),
  'resnet50': functools.partial(ResNet, (3, 4, 6, 3)),
  'resnet101': functools.partial(ResNet, (3, 4, 23, 3)),
  'resnet152': functools.partial(ResNet, (3, 8, 36, 3)),
}
