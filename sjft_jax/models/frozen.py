"""Convolutional networks as data: layers that name their arrays.

A layer is a function of (map below, arrays) and knows the shapes of its
arrays. A network is a tuple of layers; another network is another tuple.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sjft_jax.errors import UserError
from sjft_jax.models.convolutions import pointwise


@dataclasses.dataclass(frozen=True)
class Conv:
  """A convolution; its groups see equal shares of the channels.

  Attributes:
    name: of the layer and of its arrays.
    features: kernels.
    size: side of the kernels.
    stride: pixels from one response to the next.
    padding: zeros on every side.
    groups: parts that do not see each other.
  """

  name: str
  features: int
  size: int
  stride: int = 1
  padding: int = 0
  groups: int = 1

  def shapes(self, channels):
    """{name: (kernel HWIO, bias)} of the arrays, given the channels below."""
    taps = self.size, self.size, channels // self.groups
    return {self.name: ((*taps, self.features), (self.features,))}

  def __call__(self, map_nhwc, arrays):
    """The responses before the nonlinearity."""
    kernel_hwio, bias_o = arrays[self.name]
    size = map_nhwc.shape[1:3]
    if min(size) + 2 * self.padding < self.size:
      raise UserError(_too_small('a kernel', size, self.size))
    high = jax.lax.Precision.HIGHEST
    if (self.size, self.stride, self.padding, self.groups) == (1, 1, 0, 1):
      map_nhwc = pointwise(map_nhwc, kernel_hwio[0, 0], high)
      return map_nhwc + bias_o[None, None, None]
    # XLA has slow kernels for grouped convolutions on CPUs: 2 x at AlexNet's.
    parts = [
      jax.lax.conv_general_dilated(
        part_nhwc,
        part_hwio,
        window_strides=(self.stride, self.stride),
        padding=((self.padding, self.padding),) * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=high,
      )
      for part_nhwc, part_hwio in zip(
        jnp.split(map_nhwc, self.groups, axis=-1),
        jnp.split(kernel_hwio, self.groups, axis=-1),
        strict=True,
      )
    ]
    return jnp.concatenate(parts, axis=-1) + bias_o[None, None, None]


@dataclasses.dataclass(frozen=True)
class Fire:
  """SqueezeNet's module: a 1x1 squeeze, then 1x1 and 3x3 side by side.

  Attributes:
    name: of the layer, with which the names of its arrays begin.
    squeeze: kernels of the first convolution.
    expand: kernels of each of the other two.
  """

  name: str
  squeeze: int
  expand: int

  @property
  def features(self):
    """Channels of the response: the 1x1 kernels, then the 3x3 kernels."""
    return 2 * self.expand

  @property
  def _parts(self):
    return (
      Conv(f'{self.name}_squeeze', self.squeeze, 1),
      Conv(f'{self.name}_expand1', self.expand, 1),
      Conv(f'{self.name}_expand3', self.expand, 3, padding=1),
    )

  def shapes(self, channels):
    """{name: (kernel HWIO, bias)} of the arrays, given the channels below."""
    squeeze, narrow, wide = self._parts
    return (
      squeeze.shapes(channels)
      | narrow.shapes(self.squeeze)
      | wide.shapes(self.squeeze)
    )

  def __call__(self, map_nhwc, arrays):
    """The responses before the nonlinearity."""
    squeeze, narrow, wide = self._parts
    map_nhwc = jax.nn.relu(squeeze(map_nhwc, arrays))
    both = narrow(map_nhwc, arrays), wide(map_nhwc, arrays)
    return jnp.concatenate(both, axis=-1)


class _Fixed:
  """A layer without arrays, and without responses of its own."""

  name = None

  def shapes(self, channels):
    """No arrays."""
    del channels
    return {}


@dataclasses.dataclass(frozen=True)
class Pool(_Fixed):
  """Maxima over 3 x 3 windows with stride 2.

  Attributes:
    ceil: as Caffe, the last window may reach over the edge; else, as torch,
      pixels that fill no window are left out.
  """

  ceil: bool

  def __call__(self, map_nhwc, arrays):
    """The largest value of every window."""
    del arrays
    for axis in (1, 2):
      size = map_nhwc.shape[axis]
      over = (1 - size % 2) if self.ceil else 0
      windows = (size + over - 3) // 2 + 1
      if windows < 1:
        raise UserError(_too_small('a pool', map_nhwc.shape[1:3], 3))
      edge = [(0, over if i == axis else 0, 0) for i in range(4)]
      lowest = jnp.array(-jnp.inf, map_nhwc.dtype)
      map_nhwc = jax.lax.pad(map_nhwc, lowest, edge)
      # A maximum of slices fuses with what surrounds it; a pool does not.
      first, second, third = (
        jax.lax.slice_in_dim(map_nhwc, i, i + 2 * windows - 1, 2, axis)
        for i in range(3)
      )
      map_nhwc = jnp.maximum(jnp.maximum(first, second), third)
    return map_nhwc


@dataclasses.dataclass(frozen=True)
class LocalNorm(_Fixed):
  """Local response normalisation across channels.

  y[c] = x[c] / (1 + alpha / size sum_{|j - c| <= size // 2} x[j]^2)^(3/4)

  Attributes:
    size: channels in the sum, odd.
    alpha: weight of their mean square.

  Source: Krizhevsky et al., NIPS 2012, with Caffe's division by the size.
  """

  size: int = 5
  alpha: float = 1e-4

  def __call__(self, map_nhwc, arrays):
    """The normalised map, same shape."""
    del arrays
    channels, half = map_nhwc.shape[-1], self.size // 2
    square_nhwc = jnp.pad(map_nhwc**2, ((0, 0),) * 3 + ((half, half),))
    sum_nhwc = sum(square_nhwc[..., i : i + channels] for i in range(self.size))
    # Two roots: a power takes three times as long on CPUs.
    root = jax.lax.rsqrt(1 + self.alpha / self.size * sum_nhwc)
    return map_nhwc * root * jnp.sqrt(root)


@dataclasses.dataclass(frozen=True)
class Network:
  """Layers from the input up; a ReLU follows every one that has a name.

  Attributes:
    layers: the layers.
    default: names of those that respond in a bank where none are named.
  """

  layers: tuple[Conv | Fire | Pool | LocalNorm, ...]
  default: tuple[str, ...]

  @property
  def names(self):
    """Names of the layers that can respond."""
    return tuple(layer.name for layer in self.layers if layer.name)

  def upto(self, names):
    """The network without the layers above the last one named."""
    last = max(i for i, layer in enumerate(self.layers) if layer.name in names)
    return dataclasses.replace(self, layers=self.layers[: last + 1])

  def shapes(self):
    """{name: (kernel HWIO, bias)} of all arrays."""
    found, channels = {}, 3
    for layer in self.layers:
      found |= layer.shapes(channels)
      channels = getattr(layer, 'features', channels)
    return found

  def responses(self, map_nhwc, arrays):
    """Yields (name, before the ReLU, after it) of every layer with a name."""
    for layer in self.layers:
      before_nhwc = layer(map_nhwc, arrays)
      map_nhwc = before_nhwc
      if layer.name:
        map_nhwc = jax.nn.relu(before_nhwc)
        yield layer.name, before_nhwc, map_nhwc


def _too_small(what, size, least):
  return (
    f'The network needs larger images: {what} of {least} x {least} came upon '
    f'a map of {size[0]} x {size[1]}; raise the crop or choose lower layers.'
  )
