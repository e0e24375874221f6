import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import losses


def draw(n, c, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, c), scale=scale), rng.integers(0, c, n)


def float64(logits, label):
  exp = np.exp(logits - logits.max(1, keepdims=True))
  p = exp / exp.sum(1, keepdims=True)
  return -np.log(p[np.arange(len(label)), label]).mean(), p


@pytest.mark.parametrize('scale', [1.0, 20.0])
@pytest.mark.parametrize('weights', [(1.0, 1.0), (0.5, 0.25)])
def test_joint_is_the_weighted_sum_in_float64(weights, scale):
  target, source = draw(5, 3, 0, scale), draw(7, 11, 1, scale)
  found = losses.joint(
    *map(jnp.asarray, (*target, *source)),
    target_weight=weights[0],
    source_weight=weights[1],
  )
  parts = float64(*target)[0], float64(*source)[0]
  np.testing.assert_allclose(found, [np.dot(weights, parts), *parts], rtol=1e-5)


def test_a_softened_teacher_is_one_of_softened_logits():
  (logits, _), (teacher, _) = draw(6, 4, 3), draw(6, 4, 4)
  probability = float64(teacher, np.zeros(6, int))[1]

  def soft(x):
    e = np.exp(np.asarray(x, np.float64) / 3)
    return e / e.sum(axis=1, keepdims=True)

  expected = -9 * (soft(teacher) * np.log(soft(logits))).sum(axis=1).mean()
  found = losses.soft_cross_entropy(
    jnp.asarray(logits), jnp.asarray(probability, jnp.float32), 3.0
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  with pytest.raises(ValueError, match='A probability a logit'):
    losses.soft_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 4)), 1.0)


def test_smoothing_spreads_a_part_of_the_label():
  logits, label = draw(6, 4, 3)
  smooth = 0.7 * np.eye(4)[label] + 0.3 / 4
  expected = -(smooth * np.log(float64(logits, label)[1])).sum(1).mean()
  found = losses.cross_entropy(jnp.asarray(logits), label, 0.3)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  halves = [jnp.asarray(logits), label] * 2
  both = losses.joint(*halves, smoothing=0.3)
  np.testing.assert_allclose(both, [2 * expected, expected, expected], 1e-5)


def test_gradient_is_the_softmax_less_the_label():
  logits, label = draw(6, 4, 2)
  found = jax.grad(losses.cross_entropy)(jnp.asarray(logits), label)
  expected = (float64(logits, label)[1] - np.eye(4)[label]) / 6
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_empty_half_adds_nothing():
  logits, label = map(jnp.asarray, draw(5, 3, 0))
  none = jnp.zeros((0, 11)), jnp.zeros((0,), jnp.int32)
  total, target, source = losses.joint(logits, label, *none)
  assert total == target > 0
  assert source == 0
  total, target, source = losses.joint(*none, logits, label)
  assert total == source > 0
  assert target == 0
  gradient = jax.grad(lambda x: losses.joint(logits, label, x, none[1])[0])
  assert gradient(none[0]).shape == (0, 11)


def test_a_label_a_row():
  with pytest.raises(ValueError, match=r'\(5, 3\).*\(4,\)'):
    losses.cross_entropy(jnp.zeros((5, 3)), jnp.zeros(4, jnp.int32))
