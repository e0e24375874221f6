import math

import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import hardness

# Prediction, entropy: 0 sure; 1 sure; 0 at log 2; 0 just below 0.1 nats.
POSTERIOR = np.array(
  [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0.9815, 0.0185, 0]], np.float32
)


def grow(budget, label, posterior=POSTERIOR, maximum=10**6, min_entropy=0.1):
  return hardness.next_budget(
    np.asarray(budget),
    posterior,
    np.asarray(label),
    add_wrong=40,
    add_unsure=20,
    min_entropy=min_entropy,
    maximum=maximum,
  ).tolist()


def test_entropy_of_certainty_halves_and_thirds():
  posterior = jnp.array([[0, 1, 0], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]])
  np.testing.assert_allclose(
    hardness.entropy(posterior), [0, math.log(2), math.log(3)], rtol=1e-6
  )


def test_right_images_grow_only_when_unsure():
  assert grow([10, 10, 10, 10], [0, 1, 0, 0]) == [10, 10, 30, 10]


def test_wrong_images_grow_most_however_sure():
  assert grow([10, 10, 10, 10], [2, 2, 2, 2]) == [50, 50, 50, 50]


def test_images_grow_from_their_own_budget():
  assert grow([10, 30, 50, 70], [1, 1, 0, 0]) == [50, 30, 70, 70]


def test_entropy_at_the_bound_is_unsure():
  at_bound = float(hardness.entropy(POSTERIOR[2]))
  budget, label = [10] * 4, [0, 1, 0, 0]
  assert grow(budget, label, min_entropy=at_bound)[2] == 30
  assert grow(budget, label, min_entropy=at_bound + 1e-6)[2] == 10


def test_the_maximum_caps_every_image():
  assert grow([10, 10, 10, 60], [2, 1, 0, 0], maximum=25) == [25, 10, 25, 25]


def test_lengths_must_agree():
  with pytest.raises(ValueError, match=r'\(3,\).*\(4, 3\).*\(4,\)'):
    grow([10, 10, 10], [0, 0, 0, 0])
