"""Frozen convolutions of a pretrained network as a filter bank.

A network is a tuple of layers: data that names its arrays, and a function of
the map below. SqueezeNet v1.0 is one; another is another tuple.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax import errors

# What Caffe's ImageNet models subtract from blue, green and red bytes.
_MEAN_BGR = (104.0, 117.0, 123.0)


@dataclasses.dataclass(frozen=True)
class Conv:
  """A convolution."""

  name: str
  stride: int = 1
  padding: int = 0

  @property
  def arrays(self) -> tuple[str, ...]:
    """Names of the weights, each with `/W` and `/b` in the file."""
    return (self.name,)

  def __call__(self, map_nhwc, weights):
    """The layer's response before its nonlinearity."""
    return _convolve(
      map_nhwc, *weights[self.name], stride=self.stride, padding=self.padding
    )


@dataclasses.dataclass(frozen=True)
class Fire:
  """SqueezeNet's module: a 1x1 squeeze, then 1x1 and 3x3 side by side."""

  name: str

  @property
  def arrays(self) -> tuple[str, ...]:
    """Names of the weights, each with `/W` and `/b` in the file."""
    parts = 'conv1x1_1', 'conv1x1_2', 'conv3x3_2'
    return tuple(f'{self.name}/{part}' for part in parts)

  def __call__(self, map_nhwc, weights):
    """The layer's response before its nonlinearity."""
    squeeze, narrow, wide = (weights[name] for name in self.arrays)
    map_nhwc = jax.nn.relu(_convolve(map_nhwc, *squeeze))
    both = _convolve(map_nhwc, *narrow), _convolve(map_nhwc, *wide, padding=1)
    return jnp.concatenate(both, axis=-1)


@dataclasses.dataclass(frozen=True)
class Pool:
  """Caffe's max-pool: the last window may reach over the edge."""

  window: int = 3
  stride: int = 2
  name = None
  arrays = ()

  def __call__(self, map_nhwc, weights):
    """The largest value of every window."""
    _, *size, _ = map_nhwc.shape
    over = [-(n - self.window) % self.stride for n in size]
    if min(n + o for n, o in zip(size, over, strict=True)) < self.window:
      raise errors.UserError(_too_small('a pool', size, self.window))
    return jax.lax.reduce_window(
      map_nhwc,
      -jnp.inf,
      jax.lax.max,
      window_dimensions=(1, self.window, self.window, 1),
      window_strides=(1, self.stride, self.stride, 1),
      padding=((0, 0), *((0, o) for o in over), (0, 0)),
    )


SQUEEZENET = (
  Conv('conv1', stride=2),
  Pool(),
  *(Fire(f'fire{i}') for i in (2, 3, 4)),
  Pool(),
  *(Fire(f'fire{i}') for i in (5, 6, 7, 8)),
  Pool(),
  Fire('fire9'),
)


def load(
  path: str,
  layers: Sequence[str] = ('conv1',),
  activation: str = 'after',
  network: Sequence[Conv | Fire | Pool] = SQUEEZENET,
) -> tuple[Callable, np.ndarray]:
  """Reads a network's weights and makes a filter bank of some of its layers.

  Input bytes are turned to BGR, less (104, 117, 123), undivided. A fire
  module's channels are its 1x1 kernels, then its 3x3 kernels.

  Args:
    path: an .npz file with `<array>/W` (OIHW) and `<array>/b`.
    layers: names of the layers that respond.
    activation: 'before' or 'after' the layer's ReLU.
    network: the layers, from the input up.

  Returns:
    The function uint8 RGB [n, h, w, 3] -> list of float32 [n, h', w', c], one
    per layer in the network's order, a pytree that may be passed into jit; and
    the position in that list of every channel, int32 [channels of all layers].

  Raises:
    errors.UserError: if the file, a layer or an array is missing or unfit, or
      (from the function) the images are too small for the network.
  """
  if activation not in ('before', 'after'):
    raise errors.UserError(
      f"A conv bank needs activation 'before' or 'after', got {activation!r}."
    )
  known = [layer.name for layer in network if layer.name]
  unknown = [name for name in layers if name not in known]
  if unknown or not layers:
    raise errors.UserError(
      f'A conv bank needs layers out of {", ".join(known)}, '
      f'got {", ".join(unknown) or "none"}.'
    )
  last = max(i for i, layer in enumerate(network) if layer.name in layers)
  network = tuple(network[: last + 1])
  weights = _read(path, [name for layer in network for name in layer.arrays])
  responses = jax.tree_util.Partial(
    _Responses(network, frozenset(layers), activation == 'before'), weights
  )
  try:
    example = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8)
    shapes = [r.shape for r in jax.eval_shape(responses, example)]
  except (TypeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise errors.UserError(
      f'Weights in {path} do not fit together as the network: {reason}'
    ) from error
  channels = [shape[-1] for shape in shapes]
  return responses, np.repeat(np.arange(len(shapes), dtype=np.int32), channels)


@dataclasses.dataclass(frozen=True)
class _Responses:
  """The bank's function of (weights, images); equal banks compile once."""

  network: tuple[Conv | Fire | Pool, ...]
  chosen: frozenset[str]
  before: bool

  def __call__(self, weights, image_nhwc):
    # One image at a time: its responses do not depend on its batch, to the bit,
    # and on CPU come no later.
    return jax.lax.map(lambda x_hwc: self._respond(weights, x_hwc), image_nhwc)

  def _respond(self, weights, image_hwc):
    mean_bgr = jnp.array(_MEAN_BGR).reshape(1, 1, 1, 3)
    map_nhwc = image_hwc[None, ..., ::-1].astype(jnp.float32) - mean_bgr
    responses = []
    for layer in self.network:
      map_nhwc = layer(map_nhwc, weights)
      if layer.name in self.chosen and self.before:
        responses.append(map_nhwc)
      if layer.name:
        map_nhwc = jax.nn.relu(map_nhwc)
      if layer.name in self.chosen and not self.before:
        responses.append(map_nhwc)
    return [response_nhwc[0] for response_nhwc in responses]


def _read(path, names):
  """The named arrays as {name: (kernel HWIO, bias)}, float32."""
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
      found = {key: archive[key] for key in archive.files}
  except OSError as error:
    raise errors.UserError(
      f'Weights need a readable .npz file, got {path}: {error.strerror}.'
    ) from error
  except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile):
    raise errors.UserError(
      f'Weights need an .npz file of plain arrays; {path} is none.'
    ) from None
  keys = [f'{name}/{part}' for name in names for part in 'Wb']
  if missing := [key for key in keys if key not in found]:
    raise errors.UserError(f'Weights in {path} lack {", ".join(missing)}.')
  weights = {}
  for name in names:
    kernel_oihw, bias_o = found[f'{name}/W'], found[f'{name}/b']
    if kernel_oihw.ndim != 4 or bias_o.shape != kernel_oihw.shape[:1]:
      raise errors.UserError(
        f'Weights in {path} need {name}/W [o, i, h, w] and {name}/b [o], '
        f'got {kernel_oihw.shape} and {bias_o.shape}.'
      )
    kernel_hwio = kernel_oihw.transpose(2, 3, 1, 0)
    weights[name] = tuple(
      jnp.asarray(x, jnp.float32) for x in (kernel_hwio, bias_o)
    )
  return weights


def _convolve(map_nhwc, kernel_hwio, bias_o, stride=1, padding=0):
  size, taps = map_nhwc.shape[1:3], kernel_hwio.shape[:2]
  if min(n + 2 * padding - t for n, t in zip(size, taps, strict=True)) < 0:
    raise errors.UserError(_too_small('a kernel', size, taps[0]))
  map_nhwc = jax.lax.conv_general_dilated(
    map_nhwc,
    kernel_hwio,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=jax.lax.Precision.HIGHEST,
  )
  return map_nhwc + bias_o.reshape(1, 1, 1, -1)


def _too_small(what, size, least):
  return (
    f'The conv bank needs larger images: {what} of {least} x {least} came upon '
    f'a map of {size[0]} x {size[1]}; raise the crop or choose lower layers.'
  )
