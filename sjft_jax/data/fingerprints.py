"""Fingerprints that say whether two files show the same picture.

The fingerprint of a picture is its 85 lowest frequencies (DCT-II of its
luminance at 32 x 32 pixels, the mean left out), each times its frequency, as a
vector of length 1: natural pictures hold less the higher the frequency, and
weighted so, unrelated ones have products near 0. It hardly changes with size
and JPEG quality. Mirroring changes the sign of the odd horizontal frequencies
only. Crops are met by comparing with views of the picture: windows that cut or
add up to a tenth. A border of one colour is met by the fingerprint of what it
surrounds. What is alike is then compared pixel by pixel, see `compare`; the
fewer details pictures have, the more exactly they must agree, since two strokes
that are aligned agree well, whoever drew them.
"""

import contextlib
from typing import NamedTuple

import cv2
import numpy as np

from sjft_jax.data import preprocess

SIDE = 32  # pixels
FREQUENCIES = 10  # lower than this, in half cycles a side
SMALLEST = 24  # pixels; smaller pictures hold too little to be told apart
LEAST_CONTRAST = 2  # grey levels, standard deviation; likewise
COMPARED = 64  # pixels a side, where two pictures are compared
DECODED = 128  # pixels; a larger JPEG may be decoded at a part of its size

_BORDER = 0.25  # of a side, the widest that is cut off
_BORDER_LEVELS = 10  # how far a border's mean may be from its first line's
_WARP = 0.2  # of a side, how far the alignment may stretch or shear
# What JPEG, scaling and cropping leave alone lies between these blurs, pixels
# of COMPARED.
_BAND = 1, 2
# Agreement is no chance if it is so many standard deviations above it. They are
# many as pairs are not drawn: the screen and the alignment make them alike.
_CHANCE = 12
# More is asked of none: copies of all kinds have 0.98, to JPEG quality 50.
_AGREEMENT = 0.978
_NOISE = 1  # grey levels that JPEG quality 50 adds to the band


def _basis() -> np.ndarray:
  """Orthonormal DCT-II, float32 [frequency, pixel]."""
  u, x = np.arange(FREQUENCIES)[:, None], np.arange(SIDE)[None] + 0.5
  basis = np.cos(np.pi * u * x / SIDE) * np.sqrt(2 / SIDE)
  basis[0] /= np.sqrt(2)
  return basis.astype(np.float32)


def _order() -> tuple[np.ndarray, np.ndarray, int]:
  """Places of the frequencies kept, their weights, how many are even."""
  v, u = np.indices((FREQUENCIES, FREQUENCIES))
  radius = np.hypot(u, v)
  kept = (radius > 0) & (radius < FREQUENCIES)
  even = np.flatnonzero(kept & (u % 2 == 0))
  order = np.concatenate([even, np.flatnonzero(kept & (u % 2 == 1))])
  return order, radius.ravel()[order].astype(np.float32), len(even)


BASIS = _basis()
_ORDER, _WEIGHT, EVEN = _order()
SIZE = len(_ORDER)


class Window(NamedTuple):
  """A part of a picture, in parts of its sides; may reach beyond it."""

  left: float
  top: float
  width: float
  height: float


def _views() -> tuple[Window, ...]:
  """The whole, and what crops and their opposites of up to a tenth leave."""
  views = [Window(0, 0, 1, 1)]
  for side, places in (
    (0.95, (0, 0.05)),
    (0.9, (0, 0.05, 0.1)),
    (1.05, (0, -0.05)),
    (1.11, (0, -0.055, -0.11)),
  ):
    views += [Window(x, y, side, side) for x in places for y in places]
    if len(places) == 3:
      views += [Window(x, 0, side, 1) for x in places]
      views += [Window(0, y, 1, side) for y in places]
  return tuple(views)


VIEWS = _views()


def decode(data: bytes) -> np.ndarray:
  """Luminance of an encoded file: uint8 [h, w], as large as is needed here.

  Raises:
    BadImage: as `preprocess.decode`.
  """
  return preprocess.decode_grey(data, least=DECODED)


def regions(grey: np.ndarray) -> list[np.ndarray]:
  """The picture and, where it has a border of one colour, what that surrounds.

  Args:
    grey: uint8 [h, w].

  Returns:
    Views into `grey`; empty where the picture is too small or too flat.
  """
  height, width = grey.shape
  inner = grey[
    _border(grey) : height - _border(grey[::-1]),
    _border(grey.T) : width - _border(grey.T[::-1]),
  ]
  found = [grey] if inner.shape == grey.shape else [grey, inner]
  return [
    region
    for region in found
    if min(region.shape) >= SMALLEST and region.std() >= LEAST_CONTRAST
  ]


def _border(lines: np.ndarray) -> int:
  """How many of the first lines are of one colour."""
  level, count = float(np.median(lines[0])), 0
  for line in lines[: int(_BORDER * len(lines))]:
    off = np.abs(line.astype(np.int16) - int(level)).max()
    # JPEG rings along the edge: single pixels may be further off.
    if off > 2 * _BORDER_LEVELS or abs(line.mean() - level) > _BORDER_LEVELS:
      break
    count += 1
  return count


def fingerprint(region: np.ndarray) -> np.ndarray:
  """Fingerprint of a picture.

  Args:
    region: uint8 [h, w].

  Returns:
    int8 [SIZE]: the EVEN even parts, then the odd ones; see `unpack`.
  """
  small = preprocess.resize(region.astype(np.float32), SIDE)
  value = _transform(small[None])[0]
  return np.rint(value * (127 / np.abs(value).max())).astype(np.int8)


def unpack(stored: np.ndarray) -> np.ndarray:
  """Unit vectors, float32, of int8 fingerprints [..., SIZE]."""
  return _unit(stored.astype(np.float32))


def view_fingerprints(region: np.ndarray) -> np.ndarray:
  """Fingerprints of every view of a picture.

  Args:
    region: uint8 [h, w].

  Returns:
    float32 [len(VIEWS), SIZE], of length 1 each.
  """
  side = 3 * SIDE
  windows = (window(region, view, side)[0] for view in VIEWS)
  return _transform(np.stack([preprocess.resize(w, SIDE) for w in windows]))


def _transform(image_nhw: np.ndarray) -> np.ndarray:
  value = (BASIS @ image_nhw @ BASIS.T).reshape(len(image_nhw), -1)
  return _unit(value[:, _ORDER] * _WEIGHT)


def _unit(value: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(value, axis=-1, keepdims=True)
  return value / np.maximum(length, np.finfo(np.float32).tiny)


def window(
  region: np.ndarray, view: Window, side: int
) -> tuple[np.ndarray, np.ndarray]:
  """A part of a picture as a square; what lies beyond it is its reflection.

  Args:
    region: uint8 [h, w].
    view: the part.
    side: of the square, in pixels.

  Returns:
    float32 [side, side], and uint8 [side, side]: 1 inside the picture.
  """
  whole = preprocess.resize(region.astype(np.float32), side)
  move = np.array(
    [
      [view.width, 0, view.left * side + view.width / 2 - 0.5],
      [0, view.height, view.top * side + view.height / 2 - 0.5],
    ],
    np.float32,
  )
  return _warp(whole, move), _warp(np.ones(whole.shape, np.uint8), move)


def _warp(image: np.ndarray, move: np.ndarray) -> np.ndarray:
  mask = image.dtype == np.uint8
  how = cv2.INTER_NEAREST if mask else cv2.INTER_LINEAR
  beyond = cv2.BORDER_CONSTANT if mask else cv2.BORDER_REFLECT
  return cv2.warpAffine(
    image,
    move,
    image.shape[::-1],
    flags=how | cv2.WARP_INVERSE_MAP,
    borderMode=beyond,
  )


def compare(
  source: np.ndarray, target: np.ndarray, view: Window, mirrored: bool
) -> float:
  """Whether two pictures are the same, pixel by pixel.

  The view of the target is aligned with the source (affine, by the enhanced
  correlation coefficient), and the fine detail of both is correlated: what a
  Gaussian of 2 pixels takes away at 64 x 64. Copies keep it, and pictures that
  are merely alike in their large shapes do not share it.

  Pictures of few strokes may share it by chance. So what lies between Gaussians
  of 1 and 2 pixels, which copies keep almost exactly, must correlate by more
  than

    min(0.978, tanh(12 / sqrt(n))) / (1 + 1 / (2 v)),

  twelve standard deviations of the correlation of n independent details (by
  Fisher's transformation), n of the picture that has fewer, see `details`; v,
  the variance of the fainter one, says what JPEG's noise of 1 grey level leaves
  of a correlation of 1.

  Args:
    source: uint8 [h, w].
    target: uint8 [h, w].
    view: the part of the target to compare.
    mirrored: whether to mirror that.

  Returns:
    Correlation of the fine detail, -1..1; 0 where the pictures cannot be
    aligned, and where they agree no better than others may by chance.

  Source: the alignment is Evangelidis & Psarakis, PAMI 2008.
  """
  still = preprocess.resize(source.astype(np.float32), COMPARED)
  moving, inside = window(target, view, COMPARED)
  if mirrored:
    moving, inside = (
      np.ascontiguousarray(a[:, ::-1]) for a in (moving, inside)
    )
  move = np.eye(2, 3, dtype=np.float32)
  stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
  with contextlib.suppress(cv2.error):  # It did not converge.
    _, move = cv2.findTransformECC(
      still, moving, move, cv2.MOTION_AFFINE, stop, inside, 5
    )
    if np.abs(move - np.eye(2, 3))[:, :2].max() <= _WARP:
      inside = _warp(inside, move) > 0
      moved = _warp(moving, move)
      a, b = _band(still)[inside], _band(moved)[inside]
      count = min(details(still), details(moving))
      if _correlation(a, b) > _by_chance(count, min(a.var(), b.var())):
        return _correlation(_detail(still)[inside], _detail(moved)[inside])
  return 0.0


def details(image: np.ndarray) -> float:
  """How many independent details a picture has.

  The area on which its band of frequencies has its energy times the part of the
  spectrum that this fills, both as (sum x)^2 / sum x^2:

    n = (sum e)^2 / sum e^2 * (sum p)^2 / sum p^2 / pixels

  with e the energy around each pixel and p the power of each frequency. A
  photograph has some 100, a handwritten digit some 30.

  Args:
    image: float32 [COMPARED, COMPARED].

  Returns:
    n, 0 where nothing is to be seen.
  """
  band = _band(image)
  energy = cv2.GaussianBlur(band * band, (0, 0), 2)
  power = np.abs(np.fft.fft2(band)) ** 2
  return _spread(energy) * _spread(power) / band.size


def _spread(share: np.ndarray) -> float:
  """How many equal parts would be as unlike as these."""
  squares = np.square(share, dtype=np.float64).sum()
  return float(share.sum(dtype=np.float64) ** 2 / squares) if squares else 0.0


def _by_chance(count: float, variance: float) -> float:
  """How well two pictures of so many details may agree and be different."""
  if not (count and variance):
    return 1.0
  agreement = min(_AGREEMENT, float(np.tanh(_CHANCE / np.sqrt(count))))
  return agreement / (1 + _NOISE**2 / (2 * float(variance)))


def _detail(image: np.ndarray) -> np.ndarray:
  return image - cv2.GaussianBlur(image, (0, 0), 2)


def _band(image: np.ndarray) -> np.ndarray:
  small, large = (cv2.GaussianBlur(image, (0, 0), sigma) for sigma in _BAND)
  return small - large


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  a, b = a - a.mean(), b - b.mean()
  length = np.sqrt((a @ a) * (b @ b))
  return float(a @ b / length) if length > 0 else 0.0
