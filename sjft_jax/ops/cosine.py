"""Convolution of mirrored images as products with cosine and sine matrices.

An image continued by reflection is even about its borders, so that a cosine
transform X(k, m) says all about it. A kernel with g(-x, -y) = conj g(x, y) has
a real spectrum S, and the convolution at the point (y, x) is

  r = sum_{k, m} S(k, m) X(k, m) e^{i pi k y / h} e^{i pi m x / w}

over k = -h..h, m = -w..w. Splitting S by its parity in k and in m leaves four
sums over k, m >= 0, each a product of two matrices with the table S X:

  Re r = cos . cos - sin . sin,   Im r = sin . cos + cos . sin.

Three savings follow. The kernel turned about the vertical axis has the same
four sums with other signs, and costs nothing more. Frequencies that the kernel
does not pass are left out. And since even and odd frequencies are even and odd
about the middle of the image, a quarter of the points suffices. With 48 Gabor
kernels what remains is as much arithmetic as by two-dimensional FFTs at 64
pixels, and four times as much at 224; but it is matrix products, which run at a
processor's full rate where FFTs do not.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Half the distance from 1 to the next float32: less is lost in rounding.
_NEGLIGIBLE = 2.0**-24
# Parity in k and in m: False is even, a cosine; True is odd, a sine.
_PARITIES = tuple(itertools.product((False, True), repeat=2))
# How the four sums add up to the outputs, in the order of _PARITIES: real and
# imaginary part of a kernel, then those of the kernel turned about the
# vertical axis, which is S(k, -m).
_OUTPUTS = np.array(
  [[1, 0, 0, -1], [0, 1, 1, 0], [1, 0, 0, 1], [0, -1, 1, 0]], np.float32
)


class Filter(NamedTuple):
  """A kernel made ready for images of one size.

  Sizes: t parities, at most 4; i and j the parity of m and of k, 2 where the
  number of points is even and they are worth parting, else 1; k, m frequencies
  of each; y, x the points of one quarter; c outputs.

  table: S, float32 [t, i, j, k, m].
  column: cosines or sines of x, float32 [t, i, m, x].
  row: cosines or sines of y, float32 [t, i, j, y, k].
  sign: of every sum in every output of every quarter, float32
    [t i j, quarters c].
  """

  table: jax.Array
  column: jax.Array
  row: jax.Array
  sign: jax.Array


def prepare(
  kernel_yx: np.ndarray,
  height: int,
  width: int,
  *,
  spacing: int = 1,
  turned: bool = False,
) -> Filter:
  """Makes a kernel ready for `respond`.

  Args:
    kernel_yx: complex [taps, taps], taps odd, g(-x, -y) = conj g(x, y); may be
      larger than the images.
    height: rows of the images, pixels.
    width: columns of the images, pixels.
    spacing: pixels between the points of the response, which lie evenly in the
      image; 1 is every pixel.
    turned: respond to the kernel turned about the vertical axis, too.

  Returns:
    The filter.
  """
  size = height, width
  spectrum_km = _spectrum(kernel_yx, *size)
  table_tkm = np.stack([_part(spectrum_km, *odd) for odd in _PARITIES])
  # Of a kernel that is symmetric about an axis, two of the four parts are 0.
  most_t = np.abs(table_tkm).max((1, 2))
  kept = np.flatnonzero(most_t > _NEGLIGIBLE * most_t.max())
  table_tkm = table_tkm[kept]
  points = [-(-n // spacing) for n in size]
  folds = [2 - n % 2 for n in points]
  passed_km = np.abs(table_tkm).max(0) > _NEGLIGIBLE * most_t.max()
  count = [
    -(-(1 + np.flatnonzero(passed_km.any(axis))[-1]) // fold) * fold
    for axis, fold in zip((1, 0), folds, strict=True)
  ]
  table_tkm = np.pad(
    table_tkm[:, : count[0], : count[1]],
    [(0, 0), *((0, max(c - n, 0)) for c, n in zip(count, size, strict=True))],
  )
  odd_t = np.array(_PARITIES)[kept]
  row, column = (
    np.stack([_waves(odd, c, p, fold) for odd in odd_t[:, axis]])
    for axis, (c, p, fold) in enumerate(zip(count, points, folds, strict=True))
  )
  row = row.transpose(0, 1, 3, 2)[:, None].repeat(folds[1], axis=1)
  outputs = _OUTPUTS[: 4 if turned else 2, kept]
  quarters = itertools.product(*map(range, folds))
  sign = [
    outputs.T[:, None, None]
    * _mirrored(odd_t[:, 1], mirror_x, folds[1])[:, :, None, None]
    * _mirrored(odd_t[:, 0], mirror_y, folds[0])[:, None, :, None]
    for mirror_y, mirror_x in quarters
  ]
  sign = np.stack(sign, axis=-2).reshape(-1, len(sign) * len(outputs))
  arrays = _apart(table_tkm, *folds), column, row, sign
  return Filter(*(jnp.asarray(a, jnp.float32) for a in arrays))


def _spectrum(kernel_yx, height, width):
  """S on the grid of the mirrored image, real [2 height, 2 width]."""
  rows, columns = 2 * height, 2 * width
  radius = len(kernel_yx) // 2
  tap = np.arange(-radius, radius + 1)
  wrapped = np.zeros((rows, columns), complex)
  np.add.at(wrapped, (tap[:, None] % rows, tap[None, :] % columns), kernel_yx)
  return np.fft.fft2(wrapped).real


def _part(spectrum_km, odd_k, odd_l):
  """The part of one parity at k, m >= 0, with what negative k, m add."""
  for axis, odd in enumerate((odd_k, odd_l)):
    negative_km = np.roll(np.flip(spectrum_km, axis), 1, axis)
    spectrum_km = spectrum_km + (-negative_km if odd else negative_km)
    # What meets itself at 0 was counted twice.
    half = np.where(np.arange(spectrum_km.shape[axis]) == 0, 0.5, 1)
    spectrum_km = spectrum_km * (half[:, None] if axis == 0 else half)
  height, width = (n // 2 for n in spectrum_km.shape)
  return spectrum_km[:height, :width] / (height * width)


def _waves(odd, count, points, fold):
  """Cosines, or sines if odd, at the first points: [fold, k / fold, points]."""
  turn = np.pi * np.arange(count)[:, None] * (np.arange(points) + 0.5) / points
  wave_kn = (np.sin if odd else np.cos)(turn)[:, : points // fold]
  return np.stack([wave_kn[j::fold] for j in range(fold)])


def _mirrored(odd_t, mirror, fold):
  """Sign of the waves of even and odd frequency, [t, fold], if mirrored."""
  frequency = np.arange(fold)[None]
  return (-1.0) ** (mirror * (frequency + odd_t[:, None]))


def _apart(value_tkm, fold_k, fold_m):
  """Even and odd frequencies apart: [t, m % fold, k % fold, k, m]."""
  t, k, m = value_tkm.shape
  value = value_tkm.reshape(t, k // fold_k, fold_k, m // fold_m, fold_m)
  return value.transpose(0, 4, 2, 1, 3)


def transform(image_hw: jax.Array, rows: int, columns: int) -> jax.Array:
  """The lowest coefficients of the cosine transform.

  X[k, m] = sum_{y, x} image[y, x] cos(pi k (y + 1/2) / h)
  cos(pi m (x + 1/2) / w)

  Args:
    image_hw: float32 [h, w].
    rows: number of k.
    columns: number of m.

  Returns:
    float32 [rows, columns].
  """
  height, width = image_hw.shape
  (row_ky,), (column_mx,) = (
    jnp.asarray(_waves(False, count, points, 1), jnp.float32)
    for count, points in ((rows, height), (columns, width))
  )
  return _product(_product(row_ky, image_hw), column_mx.T)


def respond(filter_: Filter, coefficient_km: jax.Array) -> jax.Array:
  """Convolves one image.

  Args:
    filter_: from `prepare`.
    coefficient_km: float32 [k, m], from `transform`; at least as many as the
      filter has.

  Returns:
    float32 [points down, points across, c]: every point of the response once,
    folded as the products leave them; `unfold` puts them in their places. c is
    real and imaginary part, then the turned kernel's.
  """
  t, fold_m, fold_k, k, m = filter_.table.shape
  *_, y, _ = filter_.row.shape
  x = filter_.column.shape[-1]
  (coefficient,) = _apart(
    coefficient_km[None, : k * fold_k, : m * fold_m], fold_k, fold_m
  )
  passed = filter_.table * coefficient[None]
  across = _product(passed.reshape(t, fold_m, fold_k * k, m), filter_.column)
  sums = _product(filter_.row, across.reshape(t, fold_m, fold_k, k, x))
  folded = jax.lax.dot_general(
    sums.reshape(-1, y * x),
    filter_.sign,
    (((0,), (0,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
  )
  return folded.reshape(y * fold_k, x * fold_m, -1)


def unfold(filter_: Filter, folded_hwc: jax.Array) -> jax.Array:
  """The response of `respond` with every point in its place, same shape."""
  _, fold_m, fold_k, _, _ = filter_.table.shape
  height, width, c = folded_hwc.shape
  response = folded_hwc.reshape(
    height // fold_k, width // fold_m, fold_k, fold_m, c
  )
  for axis in (0, 1):
    halves = [
      jnp.flip(half, axis) if mirror else half
      for mirror, half in enumerate(jnp.unstack(response, axis=2))
    ]
    response = jnp.concatenate(halves, axis=axis)
  return response


def _product(a, b):
  # Full precision: TPUs and GPUs would round the operands by default.
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
