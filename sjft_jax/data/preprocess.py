"""Encoded bytes to RGB crops, one image at a time.

A picture comes out as a viewer shows it: the first frame or page, turned as its
EXIF tag says, transparent parts over white, grey and palette and CMYK as RGB,
16 bits scaled to 8. Two corners are left to OpenCV: a PNG or WebP that is both
transparent and turned by EXIF is not turned, and transparent TIFF lies on
black.

A file is refused as soon as its own structure says that it is incomplete or
too large, before a decoder sees it: decoders fill missing rows with grey, write
to stderr, or allocate what the header asks for.
"""

import contextlib
import re
import struct
import threading
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

# The loaders run one image per thread; OpenCV's own threads would compete.
cv2.setNumThreads(1)
# A failure is reported once, as the reason of a BadImage.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Raised whenever an image comes out with other pixels than before, so that
# no search goes on with, and no cache serves, what an earlier build saw.
PIXELS_VERSION = 2

MAX_PIXELS = 178_956_970  # 512 MB of RGB; where Pillow suspects a bomb, too.
# Decoding takes 6 to 12 bytes a pixel: of larger images one thread has one at a
# time, or the memory of a run would be that times the threads.
_LARGE_PIXELS = 2**24
_one_large = threading.Lock()
_STRIP = 2**20  # pixels that are laid over white at a time


class BadImage(ValueError):  # noqa: N818
  """An image that cannot be used; the text is a short reason."""


class _Header(NamedTuple):
  width: int
  height: int
  alpha: bool  # May be transparent.
  data: bytes  # What to decode.


# Fill bytes, stuffed zeros and restart markers do not start a segment.
_JPEG_MARKER = re.compile(rb'\xff[^\x00\x01\xff\xd0-\xd7]')
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> _Header:
  """Walks the segments to the end of the image, past embedded thumbnails."""
  size, at = None, 2
  while marker := _JPEG_MARKER.search(data, at):
    at = marker.end()
    code = data[at - 1]
    if code == 0xD9 and size:
      return _Header(size[1], size[0], False, data)
    if code in _JPEG_FRAMES:
      # The first one counts, for a decoder, too.
      size = size or struct.unpack_from('>HH', data, at + 3)
    at += int.from_bytes(data[at : at + 2], 'big')
  raise BadImage('truncated JPEG: no end-of-image marker')


# Colour profiles, comments and animations only make the decoder complain.
_PNG_CHUNKS = frozenset((b'IHDR', b'PLTE', b'tRNS', b'eXIf', b'IDAT', b'IEND'))


def _png(data: bytes) -> _Header:
  """Checks every chunk that matters, and keeps only those."""
  kept, kinds, kind, at = [data[:8]], set(), b'', 8
  while kind != b'IEND':
    length, kind = struct.unpack_from('>I4s', data, at)
    chunk = data[at : at + length + 12]
    at += length + 12
    if at > len(data):
      raise BadImage('truncated PNG')
    if kind in _PNG_CHUNKS:
      if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], 'big'):
        raise BadImage('damaged PNG: wrong checksum')
      kept.append(chunk)
      kinds.add(kind)
  width, height = struct.unpack_from('>II', data, 16)
  alpha = bool(data[25] & 4) or b'tRNS' in kinds
  return _Header(width, height, alpha, b''.join(kept))


def _gif(data: bytes) -> _Header:
  return _Header(*struct.unpack_from('<HH', data, 6), True, data)


def _bmp(data: bytes) -> _Header:
  (header_bytes,) = struct.unpack_from('<I', data, 14)
  width, height = struct.unpack_from(
    '<HH' if header_bytes == 12 else '<ii', data, 18
  )
  # A negative height stands for rows from top to bottom.
  return _Header(width, abs(height), False, data)


def _webp(data: bytes) -> _Header:
  (size,) = struct.unpack_from('<I', data, 4)
  if len(data) < size + 8:
    raise BadImage('truncated WebP')
  kind = data[12:16]
  if kind == b'VP8X':
    width = int.from_bytes(data[24:27], 'little') + 1
    height = int.from_bytes(data[27:30], 'little') + 1
    return _Header(width, height, bool(data[20] & 0x10), data)
  if kind == b'VP8L':
    (bits,) = struct.unpack_from('<I', data, 21)
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _Header(width, height, bool(bits >> 28 & 1), data)
  width, height = struct.unpack_from('<HH', data, 26)
  return _Header(width & 0x3FFF, height & 0x3FFF, False, data)


def _tiff(data: bytes) -> _Header:
  """Reads ImageWidth (256) and ImageLength (257) of the first directory."""
  order = '<' if data.startswith(b'II') else '>'
  (at,) = struct.unpack_from(order + 'I', data, 4)
  (count,) = struct.unpack_from(order + 'H', data, at)
  size = {}
  for entry in range(at + 2, at + 2 + 12 * count, 12):
    tag, kind = struct.unpack_from(order + 'HH', data, entry)
    if tag in (256, 257):
      form = order + ('H' if kind == 3 else 'I')
      (size[tag],) = struct.unpack_from(form, data, entry + 8)
  return _Header(size.get(256, 0), size.get(257, 0), False, data)


_PNM = re.compile(
  rb'P[2356]\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s'
)


def _pnm(data: bytes) -> _Header:
  match = _PNM.match(data)
  if not match:
    raise BadImage('damaged PNM header')
  return _Header(int(match[1]), int(match[2]), False, data)


_FORMATS: tuple[tuple[str, re.Pattern, Callable[[bytes], _Header]], ...] = (
  ('JPEG', re.compile(rb'\xff\xd8'), _jpeg),
  ('PNG', re.compile(rb'\x89PNG\r\n\x1a\n'), _png),
  ('GIF', re.compile(rb'GIF8[79]a'), _gif),
  ('WebP', re.compile(rb'RIFF....WEBP', re.DOTALL), _webp),
  ('BMP', re.compile(rb'BM'), _bmp),
  ('TIFF', re.compile(rb'II\*\x00|MM\x00\*'), _tiff),
  ('PNM', re.compile(rb'P[2356]\s'), _pnm),
)


def decode(
  data: bytes, max_pixels: int = MAX_PIXELS, least: int | None = None
) -> np.ndarray:
  """Decodes JPEG, PNG, GIF, WebP, BMP, TIFF or PNM, whatever its file's name.

  Args:
    data: a whole encoded file.
    max_pixels: the most pixels that are decoded; read from the header.
    least: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, whichever
      is the smallest that leaves both sides at least so many pixels. Faster;
      the pixels are not quite those of a resize of the whole.

  Returns:
    RGB, uint8 [h, w, 3], values 0..255.

  Raises:
    BadImage: if the data are empty, of another kind, incomplete, damaged or
      too large. Damage inside a JPEG's or WebP's compressed pixels that leaves
      its structure whole goes unnoticed, as in every decoder.
  """
  name, header = _inspect(data, max_pixels)
  with _admitted(header):
    if header.alpha:
      image = _opencv(header.data, cv2.IMREAD_UNCHANGED, name)
      if image.ndim == 3 and image.shape[2] == 4:
        return _over_white(image)
    by = _reduction(name, header, least)
    if by == 1:
      return _opencv(header.data, cv2.IMREAD_COLOR_RGB, name)
    image = _opencv(header.data, _REDUCED_COLOR[by], name)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_grey(
  data: bytes, max_pixels: int = MAX_PIXELS, least: int | None = None
) -> np.ndarray:
  """As `decode`, but the luminance: uint8 [h, w], values 0..255."""
  name, header = _inspect(data, max_pixels)
  if name != 'JPEG':
    return cv2.cvtColor(decode(data, max_pixels), cv2.COLOR_RGB2GRAY)
  # A JPEG holds it as it is.
  by = _reduction(name, header, least)
  with _admitted(header):
    return _opencv(header.data, _REDUCED_GREY[by], name)


_REDUCED_COLOR = {
  2: cv2.IMREAD_REDUCED_COLOR_2,
  4: cv2.IMREAD_REDUCED_COLOR_4,
  8: cv2.IMREAD_REDUCED_COLOR_8,
}
_REDUCED_GREY = {
  1: cv2.IMREAD_GRAYSCALE,
  2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def _admitted(header: _Header):
  if header.width * header.height < _LARGE_PIXELS:
    return contextlib.nullcontext()
  return _one_large


def _reduction(name: str, header: _Header, least: int | None) -> int:
  if name != 'JPEG' or not least:
    return 1
  room = min(header.width, header.height) // least
  return max(by for by in (1, 2, 4, 8) if by == 1 or by <= room)


def _inspect(data: bytes, max_pixels: int) -> tuple[str, _Header]:
  """Format and header of a file that a decoder may be given."""
  if not data:
    raise BadImage('empty file')
  known = next((row for row in _FORMATS if row[1].match(data)), None)
  if known is None:
    raise BadImage('not a JPEG, PNG, GIF, WebP, BMP, TIFF or PNM file')
  name, _, inspect = known
  try:
    header = inspect(data)
  except (struct.error, IndexError) as e:
    raise BadImage(f'truncated {name}') from e
  if header.width * header.height > max_pixels:
    raise BadImage(
      f'{header.width} x {header.height} pixels, more than {max_pixels}'
    )
  return name, header


def _opencv(data: bytes, flags: int, name: str) -> np.ndarray:
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    image = None
  if image is None:
    raise BadImage(f'damaged or unsupported {name}')
  return image


def _over_white(bgra: np.ndarray) -> np.ndarray:
  height, width = bgra.shape[:2]
  result = np.empty((height, width, 3), np.uint8)
  rows = max(1, _STRIP // width)
  for top in range(0, height, rows):
    strip = bgra[top : top + rows]
    if strip.dtype == np.uint16:
      strip = (strip >> 8).astype(np.uint8)
    alpha = strip[..., 3:].astype(np.uint16)
    over = strip[..., 2::-1] * alpha + 255 * (255 - alpha)
    result[top : top + rows] = (over + 127) // 255
  return result


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes to a square without keeping the aspect.

  Each axis on its own: pixel-area average (INTER_AREA) where it shrinks,
  linear interpolation (INTER_LINEAR) where it grows.

  Args:
    image: uint8 [h, w, 3], or [h, w], or float32.
    size: side of the result in pixels.

  Returns:
    Of the same kind, [size, size, 3] or [size, size]; bytes are within 1 of the
    exact average.
  """
  sides = image.shape[:2]
  if size < min(sides) and max(sides) <= 2 * size:
    # Halves of the areas cover two pixels of an axis at most: OpenCV averages
    # those as it interpolates, and fours of halves, by vector instructions; in
    # one step it takes 2.5 times as long.
    image = cv2.resize(image, (2 * size,) * 2, interpolation=cv2.INTER_AREA)
  height, width = (min(side, size) for side in image.shape[:2])
  if image.shape[:2] != (height, width):
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  if (height, width) != (size, size):
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
  return image


def center_crop(image: np.ndarray, crop: int) -> np.ndarray:
  """Cuts the middle square; of an odd rest the smaller part is top and left.

  Args:
    image: uint8 [h, w, 3].
    crop: side of the square in pixels.

  Returns:
    uint8 [crop, crop, 3], a view.

  Raises:
    ValueError: if the crop is larger than the image.
  """
  top, left = (room // 2 for room in _room(image, crop))
  return image[top : top + crop, left : left + crop]


def ten_crops(image: np.ndarray, crop: int, mirrored: bool) -> np.ndarray:
  """Cuts the centre and the four corners, and mirrors them if so wished.

  Args:
    image: uint8 [h, w, 3].
    crop: side of the squares in pixels.
    mirrored: ten crops, those of the mirrored image after the five.

  Returns:
    uint8 [5 or 10, crop, crop, 3]: centre, top left, top right, bottom left,
    bottom right.

  Raises:
    ValueError: if the crop is larger than the image.
  """
  rows, columns = _room(image, crop)
  corners = [
    image[top : top + crop, left : left + crop]
    for top in (0, rows)
    for left in (0, columns)
  ]
  crops = [center_crop(image, crop), *corners]
  if mirrored:
    crops += [mirror(x) for x in crops]
  return np.stack(crops)


def random_crop(
  image: np.ndarray, crop: int, rng: np.random.Generator
) -> np.ndarray:
  """Cuts a square at a uniform position: see `center_crop`."""
  top, left = (int(rng.integers(room + 1)) for room in _room(image, crop))
  return image[top : top + crop, left : left + crop]


def _room(image: np.ndarray, crop: int) -> tuple[int, int]:
  height, width = image.shape[:2]
  if crop > min(height, width):
    raise ValueError(f'The crop must fit in the image: {crop=}, {image.shape=}')
  return height - crop, width - crop


def mirror(image: np.ndarray) -> np.ndarray:
  """Swaps left and right: uint8 [h, w, 3] to a view of the same shape."""
  return image[:, ::-1]
