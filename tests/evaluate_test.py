import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax import evaluate, mesh
from sjft_jax.data import datasets


def test_mean_class_accuracy_by_hand():
  # Class 0: 2 of 3 right; class 2: 0 of 1; class 1 does not occur.
  probability = np.array([[0.9, 0.1, 0], [0.5, 0.1, 0.4], [0.2, 0.8, 0]])
  probability = np.concatenate([probability, [[0.6, 0, 0.4]]])
  label = np.array([0, 0, 0, 2])
  expected = (2 / 3 + 0) / 2
  assert evaluate.mean_class_accuracy(probability, label) == expected


def test_rare_classes_count_as_much_as_common_ones():
  label = np.array([0] * 90 + [1] * 10)
  always_zero = np.tile([1.0, 0.0], (100, 1))
  assert evaluate.mean_class_accuracy(always_zero, label) == 0.5


def test_no_image_is_refused():
  with pytest.raises(ValueError, match='At least one'):
    evaluate.mean_class_accuracy(np.zeros((0, 3)), np.zeros(0, int))


def test_fusion_is_the_average():
  first, second = np.array([[0.2, 0.8]]), np.array([[0.6, 0.4]])
  np.testing.assert_allclose(evaluate.fuse([first, second]), [[0.4, 0.6]])


@pytest.mark.parametrize('batch', [1, 5, 16, 100])
def test_posteriors_are_in_order_whatever_the_batch(batch):
  pool = datasets.open_pool(
    {'digits': {'kind': 'packaged', 'name': 'digits'}}
  ).subset(np.arange(21))

  def predict(image_nhwc):
    mean = image_nhwc.astype(jnp.float32).mean((1, 2, 3))
    return jnp.stack([mean, -mean], axis=1)

  found, valid = evaluate.posteriors(
    predict,
    pool,
    resize=8,
    crop=8,
    batch=batch,
    mesh=mesh.make(),
    threads=1,
    label='test',
  )
  # `load_digits` has the grey levels 0..16.
  from sklearn.datasets import load_digits

  expected = load_digits().data[:21].mean(axis=1) * 255 / 16
  assert valid.all()
  np.testing.assert_allclose(found[:, 0], expected, atol=0.5)
