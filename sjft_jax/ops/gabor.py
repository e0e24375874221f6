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

from sjft_jax.ops import cosine

# ITU-R BT.601 in 14 bits, as OpenCV has it. Sums of bytes with these weights,
# and their differences, are exact in float32, so that every program finds the
# same grey to the last bit.
_LUMA = (4899, 9617, 1868)
_LUMA_ONE = 2**14


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
  down the rows. A kernel reaches 6 of its larger sigma on every side, where its
  envelope is below float32's rounding. The mean of its real part, weighted by
  the envelope, is taken from it, so that a flat image gives no response.

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
    radius = math.ceil(6 * max(sx, sy))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along = x * np.cos(turn_o) + y * np.sin(turn_o)
    across = y * np.cos(turn_o) - x * np.sin(turn_o)
    envelope = np.exp(-((along / sx) ** 2 + (across / sy) ** 2) / 2)
    wave = np.exp(2j * np.pi * u * along)
    mean_o = [
      np.average(w.real, weights=e) for w, e in zip(wave, envelope, strict=True)
    ]
    wave -= np.array(mean_o)[:, None, None]
    kernels.append(envelope * wave * gain / (2 * math.pi * sx * sy))
  return tuple(kernels)


def prepare(
  kernels: Sequence[np.ndarray],
  height: int,
  width: int,
  spacings: Sequence[int],
) -> list[list[cosine.Filter]]:
  """Makes a bank ready for `responses`.

  Args:
    kernels: what `bank` returns.
    height: rows of the images, pixels.
    width: columns of the images, pixels.
    spacings: of every scale, the pixels between the points at which it is
      evaluated; 1 is every pixel.

  Returns:
    Per scale, the filters of the orientations n = 0 .. orientations / 2; the
    other orientations are those turned about the vertical axis.
  """
  return [
    [
      cosine.prepare(
        kernel_oyx[n],
        height,
        width,
        spacing=spacing,
        turned=0 < 2 * n < len(kernel_oyx),
      )
      for n in range(len(kernel_oyx) // 2 + 1)
    ]
    for kernel_oyx, spacing in zip(kernels, spacings, strict=True)
  ]


def _order(orientations):
  """The orientations in the order of the filters' outputs."""
  return [
    turned
    for n in range(orientations // 2 + 1)
    for turned in sorted({n, -n % orientations})
  ]


def responses(
  grey_nhw: jax.Array, filters: Sequence[Sequence[cosine.Filter]]
) -> list[jax.Array]:
  """Convolution of grey images with every kernel, borders by reflection.

  A reference, for tests and other programs: no stage calls it. Descriptors are
  counts of what `make_responses` gives, the same responses, folded, which
  saves putting every point in its place.

  r[y, x] = sum_{v, u} g[v, u] grey[y - v, x - u], where pixels outside the
  image repeat it mirrored at its edge (half-sample symmetric, `reflect` in
  scipy.ndimage).

  Args:
    grey_nhw: float32 [n, h, w].
    filters: what `prepare` returns for this height and width.

  Returns:
    One float32 [n, points down, points across, channels] per scale; a channel
    is orientation x (real, imaginary), the last fastest. An image's responses
    do not depend on n.
  """

  def one(grey_hw):
    folded = iter(_folded(grey_hw, filters))
    return [
      jnp.concatenate([cosine.unfold(f, next(folded)) for f in scale], axis=-1)
      for scale in filters
    ]

  def in_order(response_nhwc):
    *nhw, channels = response_nhwc.shape
    pair = response_nhwc.reshape(*nhw, channels // 2, 2)
    pair = pair[..., np.argsort(_order(channels // 2)), :]
    return pair.reshape(response_nhwc.shape)

  return [in_order(r) for r in _each(one, grey_nhw)]


def _folded(grey_hw, filters):
  """The response of one image to each filter, folded: [h, w, 2 or 4]."""
  sizes = [f.table.shape for scale in filters for f in scale]
  coefficient_km = cosine.transform(
    grey_hw,
    rows=max(fold * k for _, _, fold, k, _ in sizes),
    columns=max(fold * m for _, fold, _, _, m in sizes),
  )
  return [cosine.respond(f, coefficient_km) for scale in filters for f in scale]


def _each(function, grey_nhw):
  """Applies a function of one image to all of them."""
  # One at a time they stay in a CPU's cache; an accelerator wants all at once.
  if jax.default_backend() == 'cpu':
    return jax.lax.map(function, grey_nhw)
  return jax.vmap(function)(grey_nhw)


def luma(image_nhwc: jax.Array) -> jax.Array:
  """Grey value of RGB pixels: 0.299 R + 0.587 G + 0.114 B, in 14 bits.

  Args:
    image_nhwc: uint8 RGB [n, h, w, 3].

  Returns:
    float32 [n, h, w], 0..255.

  Source: ITU-R BT.601.
  """
  image_nhwc = image_nhwc.astype(jnp.float32)
  weighted = sum(w * image_nhwc[..., i] for i, w in enumerate(_LUMA))
  return weighted / _LUMA_ONE


def make_responses(
  size: int, decimate: bool = False
) -> tuple[Callable, tuple[str, ...]]:
  """The default bank for square images.

  Args:
    size: height and width of the images, pixels.
    decimate: evaluate the kernels of 0.05 and 0.1 cycles per pixel only at
      every 4th and 2nd pixel of a row and column, which their bandwidth allows.

  Returns:
    The function uint8 RGB [n, size, size, 3] -> list of 16 maps, float32
    [n, h, w, 2 or 4], a pytree that may be passed into jit; and the names of
    its 48 channels, maps in turn. A map holds every point once, but folded (see
    `cosine.respond`), which histograms do not notice.
  """
  kernels = bank()
  spacings = (4, 2, 1, 1) if decimate else (1, 1, 1, 1)
  filters = prepare(kernels, size, size, spacings)
  names = tuple(
    f'scale {scale}, {n * 180 // len(kernel_oyx)} degrees, {part}'
    for scale, kernel_oyx in enumerate(kernels, 1)
    for n in _order(len(kernel_oyx))
    for part in ('real', 'imaginary')
  )
  return jax.tree_util.Partial(_respond, filters), names


def _respond(filters, image_nhwc):
  grey_nhw = luma(image_nhwc)
  # No kernel responds to a constant; without one, a flat image is exactly 0.
  grey_nhw -= grey_nhw[:, :1, :1]
  return _each(lambda grey_hw: _folded(grey_hw, filters), grey_nhw)
