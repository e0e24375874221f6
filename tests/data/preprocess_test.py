import concurrent.futures
import io
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from sjft_jax.data import preprocess

HEIGHT, WIDTH = 60, 80


def _picture(channels=3, seed=0):
  """Smooth and not symmetric, so that turns and swaps of channels show."""
  rng = np.random.default_rng(seed)
  planes = [
    Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8)).resize(
      (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    for _ in range(channels)
  ]
  return Image.merge({1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}[channels], planes)


def _file(image, form, **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def _turned():
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def _files():
  rgb, grey = _picture(), _picture(1)
  more = [ImageOps.invert(rgb)]
  palette = rgb.quantize(64)
  return {
    'jpeg': _file(rgb, 'JPEG'),
    'jpeg_progressive': _file(rgb, 'JPEG', progressive=True),
    'jpeg_grey': _file(grey, 'JPEG'),
    'jpeg_cmyk': _file(rgb.convert('CMYK'), 'JPEG', quality=95),
    'jpeg_exif': _file(rgb, 'JPEG', exif=_turned()),
    'png': _file(rgb, 'PNG'),
    'png_grey': _file(grey, 'PNG'),
    'png_palette': _file(palette, 'PNG'),
    'png_one_bit': _file(grey.convert('1'), 'PNG'),
    'png_exif': _file(rgb, 'PNG', exif=_turned()),
    'png_animated': _file(rgb, 'PNG', save_all=True, append_images=more),
    'webp': _file(rgb, 'WEBP'),
    'webp_lossless': _file(rgb, 'WEBP', lossless=True),
    'webp_exif': _file(rgb, 'WEBP', exif=_turned()),
    'webp_animated': _file(
      rgb, 'WEBP', lossless=True, save_all=True, append_images=more
    ),
    'gif': _file(palette, 'GIF'),
    'gif_animated': _file(
      palette, 'GIF', save_all=True, append_images=[more[0].quantize(64)]
    ),
    'tiff': _file(rgb, 'TIFF'),
    'tiff_lzw': _file(rgb, 'TIFF', compression='tiff_lzw'),
    'tiff_cmyk': _file(rgb.convert('CMYK'), 'TIFF'),
    'tiff_exif': _file(rgb, 'TIFF', exif=_turned()),
    'bmp': _file(rgb, 'BMP'),
    'bmp_palette': _file(palette, 'BMP'),
    'ppm': _file(rgb, 'PPM'),
    'pgm': _file(grey, 'PPM'),
  }


FILES = _files()


@pytest.mark.parametrize('name', FILES)
def test_agrees_with_pillow(name):
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(FILES[name])))
  expected = np.asarray(expected.convert('RGB'), np.int32)
  image = preprocess.decode(FILES[name])
  assert image.dtype == np.uint8
  assert image.shape == expected.shape
  # Pillow rounds CMYK differently; all else agrees to the bit.
  assert np.abs(image - expected).max() <= (1 if 'cmyk' in name else 0)


TRANSPARENT = {
  'png_la': (_picture(2), 'PNG', {}),
  'png_rgba': (_picture(4), 'PNG', {}),
  'png_palette': (_picture().quantize(16), 'PNG', {'transparency': 3}),
  'webp_rgba': (_picture(4), 'WEBP', {'lossless': True, 'exact': True}),
  'gif': (_picture().quantize(16), 'GIF', {'transparency': 3}),
}


@pytest.mark.parametrize('name', TRANSPARENT)
def test_transparent_parts_lie_on_white(name):
  image, form, options = TRANSPARENT[name]
  data = _file(image, form, **options)
  rgba = np.asarray(Image.open(io.BytesIO(data)).convert('RGBA'), np.float64)
  share = rgba[..., 3:] / 255
  assert share.min() < 1
  expected = rgba[..., :3] * share + 255 * (1 - share)
  assert np.abs(preprocess.decode(data) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize('form', ['PNG', 'TIFF'])
def test_sixteen_bits_keep_the_upper_eight(form):
  grey = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
  image = preprocess.decode(_file(Image.fromarray(grey), form))
  expected = np.repeat((grey // 256)[..., None], 3, axis=2)
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_what_is_laid_over_white_takes_no_more_than_a_strip(monkeypatch, kind):
  rng = np.random.default_rng(0)
  bgra = rng.integers(np.iinfo(kind).max, size=(300, 70, 4)).astype(kind)
  whole = preprocess._over_white(bgra)
  monkeypatch.setattr(preprocess, '_STRIP', 7 * 70 + 3)
  tracemalloc.start()
  strips = preprocess._over_white(bgra)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  np.testing.assert_array_equal(strips, whole)
  assert peak < 1.5 * strips.nbytes


def test_threads_decode_one_large_image_at_a_time(monkeypatch):
  data, at_once, most = _file(_picture(), 'PNG'), [], []
  decode = preprocess._opencv

  def slow(*args):
    at_once.append(1)
    most.append(len(at_once))
    time.sleep(0.01)
    at_once.pop()
    return decode(*args)

  monkeypatch.setattr(preprocess, '_opencv', slow)
  with concurrent.futures.ThreadPoolExecutor(4) as executor:
    list(executor.map(preprocess.decode, [data] * 8))
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(preprocess, '_LARGE_PIXELS', 1)
    list(executor.map(preprocess.decode, [data] * 8))
  assert set(most) == {1}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('kept', [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, -3, -1])
def test_truncated_files_are_refused_quietly(name, kept, capfd):
  data = FILES[name]
  length = int(kept * len(data)) if kept > 0 else len(data) + kept
  with pytest.raises(preprocess.BadImage):
    preprocess.decode(data[:length])
  assert capfd.readouterr().err == ''


def test_a_complete_thumbnail_does_not_hide_a_truncated_jpeg():
  thumbnail = _file(_picture().resize((16, 12)), 'JPEG')
  segment = b'Exif\0\0' + thumbnail
  segment = b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big') + segment
  data = FILES['jpeg'][:2] + segment + FILES['jpeg'][2:]
  np.testing.assert_array_equal(
    preprocess.decode(data), preprocess.decode(FILES['jpeg'])
  )
  with pytest.raises(preprocess.BadImage, match='truncated JPEG'):
    preprocess.decode(data[:-2])


def test_damaged_png_is_refused():
  data = bytearray(FILES['png'])
  data[len(data) // 2] ^= 1
  with pytest.raises(preprocess.BadImage, match='checksum'):
    preprocess.decode(bytes(data))


def test_png_colour_profiles_change_nothing_and_are_quiet(capfd):
  profile = b'broken\0\0' + zlib.compress(b'\0' * 200)
  data = _file(_picture(), 'PNG', icc_profile=profile)
  np.testing.assert_array_equal(preprocess.decode(data), np.asarray(_picture()))
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'', 'empty'),
    (b'label,file\n1,cat.jpg\n', 'not a JPEG'),
    (b'<html>404</html>', 'not a JPEG'),
    (b'\xff\xd8', 'truncated JPEG'),
    (
      b'\xff\xd8\xff\xc0\x00\x0b\x08\x75\x30\x75\x30\x01\x01\x11\x00'
      b'\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00\xff\xd9',
      'pixels',
    ),
    (b'P6\n' + b'9' * 5000 + b' 1\n255\n', 'damaged PNM'),
    (b'P6 wide high\n', 'PNM'),
    (_file(Image.fromarray(np.ones((4, 4), np.float32)), 'TIFF'), 'TIFF'),
  ],
)
def test_what_is_no_image_is_refused(data, reason):
  with pytest.raises(preprocess.BadImage, match=reason):
    preprocess.decode(data)


BOMBS = {
  'jpeg': ('jpeg', b'\x00\x3c\x00\x50', b'\xff\xfe\xff\xfd', (65533, 65534)),
  'bmp': (
    'bmp',
    (80).to_bytes(4, 'little') + (60).to_bytes(4, 'little'),
    (90000).to_bytes(4, 'little') + (-90000 % 2**32).to_bytes(4, 'little'),
    (90000, 90000),
  ),
  'gif': ('gif', b'\x50\x00\x3c\x00', b'\xff\xff\xff\xff', (65535, 65535)),
  'ppm': ('ppm', b'80 60', b'90000 80000', (90000, 80000)),
}


@pytest.mark.parametrize('name', BOMBS)
def test_bombs_are_refused_by_their_header(name):
  source, size, huge, (width, height) = BOMBS[name]
  data = FILES[source].replace(size, huge, 1)
  with pytest.raises(preprocess.BadImage, match=f'{width} x {height} pixels'):
    preprocess.decode(data)


@pytest.mark.parametrize('name', FILES)
def test_every_format_states_its_size_before_it_is_decoded(name):
  with pytest.raises(preprocess.BadImage, match=f'{WIDTH} x {HEIGHT} pixels'):
    preprocess.decode(FILES[name], max_pixels=WIDTH * HEIGHT - 1)
  preprocess.decode(FILES[name], max_pixels=WIDTH * HEIGHT)


def test_resize_averages_where_it_shrinks_and_interpolates_where_it_grows():
  image = np.asarray(_picture())[:60, :8]
  tall = preprocess.resize(image, 15)
  # 60 -> 15 rows: means of four; 8 -> 15 columns: between pixel centres.
  row = image.reshape(15, 4, 8, 3).mean(1)
  at = np.clip((np.arange(15) + 0.5) * 8 / 15 - 0.5, 0, 7)
  left = np.floor(at).astype(int)
  right = np.minimum(left + 1, 7)
  part = (at - left)[None, :, None]
  expected = row[:, left] * (1 - part) + row[:, right] * part
  assert tall.shape == (15, 15, 3)
  assert np.abs(tall - expected).max() <= 1
  np.testing.assert_array_equal(preprocess.resize(image[:8], 8), image[:8])


@pytest.mark.parametrize('shape', [(17, 32), (23, 23), (31, 20), (32, 32),
                                   (33, 20), (40, 75), (16, 24)])  # fmt: skip
def test_resize_weighs_every_pixel_by_the_area_it_shares(shape):
  size = 16
  image = np.random.default_rng(0).choice([0, 255], (*shape, 3))
  shared = []
  for side in shape:
    edges = np.arange(size + 1)[:, None] * (side / size)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shared.append(np.maximum(overlap, 0) * (size / side))
  expected = np.einsum('ah,hwc,bw->abc', shared[0], image, shared[1])
  found = preprocess.resize(image.astype(np.uint8), size)
  assert np.abs(found - expected).max() <= 1
  found = preprocess.resize(image.astype(np.float32), size)
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_crops_and_mirror():
  image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
  np.testing.assert_array_equal(
    preprocess.center_crop(image, 3), image[1:4, 1:4]
  )
  np.testing.assert_array_equal(preprocess.mirror(image)[2, 0], image[2, 5])
  rng = np.random.default_rng(0)
  corner = {
    tuple(np.argwhere((image == crop[0, 0]).all(-1))[0])
    for crop in (preprocess.random_crop(image, 3, rng) for _ in range(200))
  }
  assert corner == {(y, x) for y in range(3) for x in range(4)}
  with pytest.raises(ValueError, match='must fit'):
    preprocess.center_crop(image, 6)


@pytest.mark.parametrize('mirrored', [False, True])
def test_ten_crops_are_the_centre_the_corners_and_their_mirrors(mirrored):
  image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
  found = preprocess.ten_crops(image, 3, mirrored)
  places = [(1, 2), (0, 0), (0, 4), (2, 0), (2, 4)]
  expected = [image[y : y + 3, x : x + 3] for y, x in places]
  expected += [crop[:, ::-1] for crop in expected] * mirrored
  np.testing.assert_array_equal(found, expected)
