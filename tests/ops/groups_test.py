import jax
import numpy as np
import pytest

from sjft_jax.ops import groups


@pytest.mark.parametrize('n', [1, 3, 4, 9])
def test_groups_come_back_in_order_and_without_the_blanks(n):
  image = np.random.default_rng(n).integers(0, 256, (n, 2, 3, 3), np.uint8)
  seen = []

  def function(image_nhwc):
    seen.append(image_nhwc.shape)
    return image_nhwc[..., 0], {'sum': image_nhwc.sum(axis=(1, 2))}

  first, rest = jax.jit(lambda x: groups.over(function, x, 4))(image)
  assert set(seen) == {(4, 2, 3, 3)}
  np.testing.assert_array_equal(first, image[..., 0])
  np.testing.assert_array_equal(rest['sum'], image.sum(axis=(1, 2)))


@pytest.mark.parametrize(
  ('shapes', 'size'),
  [
    # AlexNet's conv1 and conv2 at 224 and at 64 pixels, 1.9 MB and 125 kB.
    ([(54, 54, 96), (27, 27, 256)], 1),
    ([(14, 14, 96), (7, 7, 256)], 8),
    # The Gabor bank at 64 pixels, 786 kB; its double; a third of a megabyte.
    ([(64, 64, 48)], 1),
    ([(64, 64, 96)], 1),
    ([(64, 64, 20)], 2),
    ([(1, 1, 1)], 8),
    ([], 8),
  ],
)
def test_a_group_fits_a_cache(shapes, size):
  assert groups.size(shapes) == size
