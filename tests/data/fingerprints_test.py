import cv2
import numpy as np
import pytest
import scipy.fft

from sjft_jax.data import fingerprints, packaged, preprocess


@pytest.fixture(scope='module')
def pictures():
  """One detailed patch of each of some photographs, uint8 [48, 48]."""
  images = packaged.load('photographs')
  wanted = ('astronaut', 'chelsea', 'coffee', 'motorcycle_left', 'ihc')
  found = []
  for name in wanted:
    index = np.flatnonzero(images.labels == images.classes.index(name))
    patches = [preprocess.decode_grey(images.files[i]) for i in index]
    found.append(max(patches, key=np.std))
  return found


def _best(changed, picture):
  """(similarity, view, mirrored) of the most alike regions and views."""
  best = (-1, None, None, None)
  for region in fingerprints.regions(changed):
    f = fingerprints.unpack(fingerprints.fingerprint(region))
    for v, view in enumerate(fingerprints.view_fingerprints(picture)):
      even, odd = np.split(view * f, [fingerprints.EVEN])
      found = even.sum() + abs(odd.sum()), v, odd.sum() < 0, region
      best = max(best, found, key=lambda row: row[0])
  return best


def test_a_fingerprint_is_a_weighted_cosine_transform(pictures):
  small = cv2.resize(pictures[0], (32, 32), interpolation=cv2.INTER_AREA)
  value = scipy.fft.dctn(small.astype(np.float64), norm='ortho')
  even, odd = [], []
  for v in range(10):
    for u in range(10):
      if 0 < v * v + u * u < 100:
        (odd if u % 2 else even).append(value[v, u] * np.hypot(u, v))
  expected = np.array(even + odd)
  expected /= np.linalg.norm(expected)
  got = fingerprints.unpack(fingerprints.fingerprint(small))
  assert len(even) == fingerprints.EVEN
  assert got.shape == expected.shape == (fingerprints.SIZE,)
  np.testing.assert_allclose(got, expected, atol=0.01)


def test_mirroring_negates_the_odd_part(pictures):
  for picture in pictures:
    plain = fingerprints.fingerprint(picture).astype(int)
    mirrored = fingerprints.fingerprint(picture[:, ::-1]).astype(int)
    even = fingerprints.EVEN
    assert np.abs(mirrored[:even] - plain[:even]).max() <= 1
    assert np.abs(mirrored[even:] + plain[even:]).max() <= 1


def _jpeg(picture):
  flags = [cv2.IMWRITE_JPEG_QUALITY, 50]
  return cv2.imdecode(cv2.imencode('.jpg', picture, flags)[1], 0)


CHANGES = {
  'copy': lambda p: p,
  'mirrored': lambda p: np.ascontiguousarray(p[:, ::-1]),
  'jpeg': _jpeg,
  'larger': lambda p: cv2.resize(p, (70, 90)),
  'smaller': lambda p: cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA),
  'cropped': lambda p: p[1:-3, 4:],
  'border': lambda p: cv2.copyMakeBorder(
    p, 3, 5, 4, 2, cv2.BORDER_CONSTANT, value=255
  ),
  'darker': lambda p: p // 2 + 20,
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_picture_is_known_again_and_no_other(pictures, change):
  for i, picture in enumerate(pictures):
    changed = CHANGES[change](picture)
    for j, other in enumerate(pictures):
      alike, view, mirrored, region = _best(changed, other)
      detail = fingerprints.compare(
        region, other, fingerprints.VIEWS[view], mirrored
      )
      if i == j:
        assert alike > 0.8
        assert detail > 0.7
        assert mirrored == (change == 'mirrored')
      else:
        assert alike < 0.7
        assert detail < 0.5


def test_what_was_cropped_from_the_target_is_met_from_both_sides(pictures):
  for picture in pictures:
    target = np.ascontiguousarray(picture[:-4, 4:])
    alike, view, mirrored, region = _best(picture, target)
    view = fingerprints.VIEWS[view]
    assert alike > 0.7
    assert view.width > 1
    assert view.height > 1
    assert fingerprints.compare(region, target, view, mirrored) > 0.6


def test_borders_are_cut_and_pictures_without_one_are_left(pictures):
  for picture in pictures:
    assert len(fingerprints.regions(picture)) == 1
    framed = cv2.copyMakeBorder(
      picture, 4, 0, 6, 2, cv2.BORDER_CONSTANT, value=128
    )
    whole, inner = fingerprints.regions(framed)
    assert whole.shape == framed.shape
    # A line of the picture may be as grey as the border.
    assert 46 <= min(inner.shape) <= max(inner.shape) <= 48


def test_small_and_flat_pictures_have_no_fingerprint():
  noise = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
  assert len(fingerprints.regions(noise)) == 1
  assert not fingerprints.regions(noise[:, :23])
  assert not fingerprints.regions(np.full((40, 40), 7, np.uint8))


def test_a_picture_that_cannot_be_aligned_is_like_nothing(pictures):
  flat = np.full((48, 48), 9, np.uint8)
  view = fingerprints.VIEWS[0]
  assert fingerprints.compare(pictures[0], flat, view, mirrored=False) == 0


def test_details_are_counted_whatever_the_light():
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(64, 64)).astype(np.float32)
  stroke = cv2.line(np.zeros((64, 64), np.float32), (20, 9), (40, 50), 1, 5)
  count = fingerprints.details(stroke)
  assert 1 < count < 20
  assert fingerprints.details(noise) > 300
  assert fingerprints.details(50 * stroke + 20) == pytest.approx(count, 1e-3)
  assert fingerprints.details(np.zeros_like(stroke)) == 0


def test_aligned_strokes_must_agree_better_than_photographs(pictures):
  def stroke(*bend):
    drawn = np.zeros((96, 96), np.uint8)
    points = np.array([[30, 20], bend, [62, 80]], np.int32)
    return cv2.polylines(drawn, [points], False, 255, 9, cv2.LINE_AA)

  def alike(a, b):
    return fingerprints.compare(a, b, fingerprints.VIEWS[0], mirrored=False)

  straight, bent = stroke(46, 50), stroke(48, 49)
  assert alike(straight, bent) == 0
  again = cv2.resize(straight, (64, 64), interpolation=cv2.INTER_AREA)
  assert alike(straight, again) > 0.9
  # The fine detail of the strokes correlates by 0.88, as that of one of these.
  rng = np.random.default_rng(0)
  for picture in pictures:
    noise = rng.normal(scale=6, size=picture.shape)
    noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
    assert alike(picture, noisy) > 0.75


def test_faint_pictures_are_known_again_behind_the_noise_of_jpeg(pictures):
  for picture in pictures:
    faint = picture // 4 + 80
    _, data = cv2.imencode('.jpg', faint, [cv2.IMWRITE_JPEG_QUALITY, 50])
    again = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    view = fingerprints.VIEWS[0]
    assert fingerprints.compare(again, faint, view, mirrored=False) > 0.65
