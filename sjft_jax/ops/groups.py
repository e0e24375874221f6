"""Images in groups of one size, so that each meets the same program."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Bytes of maps that stay in a CPU core's cache until they are counted.
_CACHE = 2**20
# More images at a time gain nothing.
_MOST = 8
# Untried, large enough to fill an accelerator.
_ON_ACCELERATORS = 32


def size(shapes: Sequence[tuple[int, ...]]) -> int:
  """Images to work on at a time, a power of two.

  On CPUs as many as keep their maps in the cache: of AlexNet's conv1 and conv2
  one at 224 pixels, where more are a third slower, eight at 64 pixels, where
  they are a fifth faster.

  Args:
    shapes: (h, w, channels) of the float32 maps of one image.
  """
  if jax.default_backend() != 'cpu':
    return _ON_ACCELERATORS
  fit = _CACHE // max(1, 4 * sum(math.prod(shape) for shape in shapes))
  return min(_MOST, 2 ** (max(1, fit).bit_length() - 1))


def over(function: Callable, image_nhwc: jax.Array, size: int):
  """Applies a function of images to `size` of them at a time.

  Args:
    function: of [size, h, w, c], to a pytree of arrays [size, ...].
    image_nhwc: any number of images.
    size: images in a group; blank ones fill the last.

  Returns:
    The pytree, of arrays [n, ...]. To the bit, what an image comes to depends
    neither on the others nor on their number.
  """
  n, *shape = image_nhwc.shape
  image_nhwc = jnp.pad(image_nhwc, ((0, -n % size), (0, 0), (0, 0), (0, 0)))
  groups = jax.lax.map(function, image_nhwc.reshape(-1, size, *shape))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], groups)
