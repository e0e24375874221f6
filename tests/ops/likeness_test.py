import jax
import numpy as np
import pytest

from sjft_jax.ops import likeness


def _parts(seed, *shape):
  value = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  value /= np.linalg.norm(value, axis=-1, keepdims=True)
  return value[..., :3], value[..., 3:]


def test_the_best_of_all_views_and_their_mirror_images():
  target, source = _parts(0, 4, 3, 8), _parts(1, 5, 8)
  got = jax.jit(likeness.best_view)(*target, *source)
  expected = np.full((4, 5), -np.inf)
  for t, s in np.ndindex(4, 5):
    for v in range(3):
      for sign in (1, -1):
        view = np.concatenate([target[0][t, v], sign * target[1][t, v]])
        other = np.concatenate([source[0][s], source[1][s]])
        product = view.astype(np.float64) @ other.astype(np.float64)
        expected[t, s] = max(expected[t, s], product)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_parts_must_be_equally_long():
  target, source = _parts(0, 4, 3, 8), _parts(1, 5, 9)
  with pytest.raises(ValueError, match='equally long'):
    likeness.best_view(*target, *source)
