"""The Gabor filter bank: 4 scales x 6 orientations x (real, imaginary) = 48.

Source: B. S. Manjunath, W. Y. Ma, "Texture features for browsing and retrieval
of image data", IEEE PAMI 18(8), 1996, with the parameters that selective joint
fine-tuning uses (Ge & Yu, CVPR 2017).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

# ITU-R BT.601. Histograms with quantile edges do not change when responses are
# scaled, so grey keeps the bytes' range of 0..255.
_LUMA = (0.299, 0.587, 0.114)


def bank(
  scales: int = 4,
  orientations: int = 6,
  low: float = 0.05,
  high: float = 0.4,
) -> tuple[np.ndarray, ...]:
  """Complex kernels of every scale, from the lowest frequency to the highest.

  With a = (high / low)^(1 / (scales - 1)), scale s = 1..scales has

    u = high / a^(scales - s)
    su = (a - 1) u / ((a + 1) sqrt(2 ln 2)),   z = -2 ln 2 su^2 / u
    sv = tan(pi / (2 orientations)) (u + z) / sqrt(2 ln 2 - z^2 / su^2)
    sx = 1 / (2 pi su),   sy = 1 / (2 pi sv)
    g = u_max / u / (2 pi sx sy) exp(-(X^2/sx^2 + Y^2/sy^2)/2 + 2 pi i u X)

  where orientation n = 0, 1, ... turns the axes by t = n pi / orientations:
  X = x cos t + y sin t, Y = y cos t - x sin t, with x along the columns and y
  down the rows. A kernel reaches 3 of its larger sigma on every side; the mean
  over its square is then taken from its real part, so that a flat image gives
  no response.

  Args:
    scales: number of scales, at least 2.
    orientations: number of orientations.
    low: centre frequency of the coarsest scale, cycles per pixel.
    high: centre frequency of the finest scale, cycles per pixel.

  Returns:
    One complex128 array [orientations, taps, taps] per scale, taps odd.

  Raises:
    ValueError: if scales < 2, orientations < 1 or not 0 < low < high <= 0.5.
  """
  if scales < 2 or orientations < 1 or not 0 < low < high <= 0.5:
    raise ValueError(
      'A bank needs 2 scales, 1 orientation and 0 < low < high <= 0.5: '
      f'{scales=}, {orientations=}, {low=}, {high=}.'
    )
  log4 = 2 * math.log(2)
  ratio = (high / low) ** (1 / (scales - 1))
  turn_o = (np.pi / orientations * np.arange(orientations))[:, None, None]
  kernels = []
  for gain in ratio ** np.arange(scales - 1, -1, -1.0):
    u = high / gain
    su = (ratio - 1) * u / ((ratio + 1) * math.sqrt(log4))
    z = -log4 * su**2 / u
    sv = math.tan(math.pi / (2 * orientations)) * (u + z)
    sv /= math.sqrt(log4 - (z / su) ** 2)
    sx, sy = 1 / (2 * math.pi * su), 1 / (2 * math.pi * sv)
    radius = math.ceil(3 * max(sx, sy))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along = x * np.cos(turn_o) + y * np.sin(turn_o)
    across = y * np.cos(turn_o) - x * np.sin(turn_o)
    envelope = np.exp(-((along / sx) ** 2 + (across / sy) ** 2) / 2)
    kernel = envelope * np.exp(2j * np.pi * u * along)
    kernel *= gain / (2 * math.pi * sx * sy)
    kernels.append(kernel - kernel.real.mean(axis=(1, 2), keepdims=True))
  return tuple(kernels)


def spectra(
  kernels: Sequence[np.ndarray], height: int, width: int
) -> tuple[np.ndarray, ...]:
  """Transfer functions of the kernels for images of one size.

  An image continued by reflection has the period (2 height, 2 width). Circular
  convolution is exact on that grid, kernels of any extent being wrapped onto
  it, and on any grid that pads the image by the kernel's radius; each scale
  takes the smaller. g(-x, -y) is the conjugate of g(x, y), so spectra are real.

  Args:
    kernels: what `bank` returns.
    height: rows of the images, pixels.
    width: columns of the images, pixels.

  Returns:
    One float32 array [orientations, grid height, grid width] per scale.
  """
  return tuple(_spectrum(k, height, width).astype(np.float32) for k in kernels)


def _spectrum(kernel_oyx, height, width):
  radius = kernel_oyx.shape[-1] // 2
  rows, columns = (
    min(2 * n, scipy.fft.next_fast_len(n + 2 * radius)) for n in (height, width)
  )
  tap = np.arange(-radius, radius + 1)
  wrapped = np.zeros((len(kernel_oyx), rows, columns), complex)
  place = (slice(None), tap[:, None] % rows, tap[None, :] % columns)
  np.add.at(wrapped, place, kernel_oyx)
  return np.fft.fft2(wrapped).real


def responses(grey_nhw: jax.Array, spectra: Sequence[jax.Array]) -> jax.Array:
  """Convolution of grey images with every kernel, borders by reflection.

  r[y, x] = sum_{v, u} g[v, u] grey[y - v, x - u], where pixels outside the
  image repeat it mirrored at its edge (half-sample symmetric, `reflect` in
  scipy.ndimage). One complex transform yields real and imaginary part.

  Args:
    grey_nhw: float32 [n, h, w].
    spectra: what `spectra` returns for this height and width.

  Returns:
    float32 [n, h, w, channels]; a channel is scale x orientation x (real,
    imaginary), the last fastest. An image's responses do not depend on n.
  """

  def one(grey_hw):
    return jnp.concatenate([_filter(grey_hw, s) for s in spectra], axis=-1)

  # One image at a time stays in the cache: twice as fast as a batch on CPU.
  return jax.lax.map(one, grey_nhw)


def _filter(grey_hw, spectrum_okl):
  """Responses [h, w, 2 o] of one image to the kernels of one scale."""
  height, width = grey_hw.shape
  _, rows, columns = spectrum_okl.shape
  top, left = (rows - height) // 2, (columns - width) // 2
  margin = (top, rows - height - top), (left, columns - width - left)
  image_kl = jnp.fft.fft2(jnp.pad(grey_hw, margin, mode='symmetric'))
  # The margin is cut off between the two passes of the inverse transform.
  half_okw = jnp.fft.ifft(image_kl[None] * spectrum_okl)
  half_okw = half_okw[:, :, left : left + width]
  full_owh = jnp.fft.ifft(half_okw.mT)[:, :, top : top + height]
  full_hwo = full_owh.transpose(2, 1, 0)
  pair_hwor = jnp.stack([full_hwo.real, full_hwo.imag], axis=-1)
  return pair_hwor.reshape(height, width, -1)


def luma(image_nhwc: jax.Array) -> jax.Array:
  """Grey value of RGB pixels: 0.299 R + 0.587 G + 0.114 B.

  Args:
    image_nhwc: uint8 RGB [n, h, w, 3].

  Returns:
    float32 [n, h, w], 0..255.

  Source: ITU-R BT.601.
  """
  image_nhwc = image_nhwc.astype(jnp.float32)
  return sum(weight * image_nhwc[..., i] for i, weight in enumerate(_LUMA))


def make_responses(size: int) -> tuple[Callable, np.ndarray]:
  """The default bank for square images.

  Args:
    size: height and width of the images, pixels.

  Returns:
    The function uint8 RGB [n, size, size, 3] -> [float32 [n, size, size, 48]],
    a pytree that may be passed into jit; and the layer of every channel, int32
    [48], all 0.
  """
  tables = jax.tree.map(jnp.asarray, spectra(bank(), size, size))
  channels = 2 * sum(map(len, tables))
  return jax.tree_util.Partial(_respond, tables), np.zeros(channels, np.int32)


def _respond(tables, image_nhwc):
  grey_nhw = luma(image_nhwc)
  # No kernel responds to a constant; without one, a flat image is exactly 0.
  return [responses(grey_nhw - grey_nhw[:, :1, :1], tables)]
