import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax import evaluate, mesh
from sjft_jax.data import datasets, preprocess
from sjft_jax.data.dataset import Dataset


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
def test_answers_are_in_order_whatever_the_batch(batch):
  pool = datasets.open_pool(
    {'digits': {'kind': 'packaged', 'name': 'digits'}}
  ).subset(np.arange(21))

  def predict(image_nhwc):
    mean = image_nhwc.astype(jnp.float32).mean((1, 2, 3))
    return jnp.stack([mean, -mean], axis=1)

  found, valid = evaluate.over_views(
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


def test_confusion_by_hand():
  probability = np.eye(3)[[0, 2, 2, 1, 0]]
  found = evaluate.confusion(probability, np.array([0, 0, 2, 1, 1]))
  np.testing.assert_array_equal(found, [[1, 0, 1], [1, 1, 0], [0, 0, 1]])
  assert evaluate.accuracy(probability, np.array([0, 0, 2, 1, 1])) == 0.6


def test_calibration_error_by_hand():
  """Two images at .9, one right; two at .6, both right; one at 1, right."""
  confidence = np.array([0.9, 0.9, 0.6, 0.6, 1.0])
  probability = np.stack([confidence, 1 - confidence], axis=1)
  label = np.array([0, 1, 0, 0, 0])
  # With two bins all lie in (.5, 1]: 4 of 5 right, mean confidence .8.
  assert abs(evaluate.calibration_error(probability, label, 2)) < 1e-12
  # With ten, 1 and .9 part: (.8, .9], (.5, .6], (.9, 1].
  expected = (2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6) + 0) / 5
  found = evaluate.calibration_error(probability, label, 10)
  np.testing.assert_allclose(found, expected)


def test_confidence_on_an_edge_belongs_below():
  probability = np.array([[0.5, 0.5], [1.0, 0.0]])
  found = evaluate.calibration_error(probability, np.array([0, 0]), 2)
  np.testing.assert_allclose(found, 0.5 / 2)


def test_average_of_weights():
  trees = [{'a': np.array([1.0, 3.0])}, {'a': np.array([3.0, 9.0])}]
  np.testing.assert_array_equal(evaluate.average(trees)['a'], [2.0, 6.0])


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('views', evaluate.VIEWS)
def test_posteriors_are_averages_over_the_views(views, mirror):
  """The likelihood is that of the left column, which a mirror moves."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 9, 9, 3), np.uint8)
  pool = Dataset(
    name='t',
    classes=('a', 'b'),
    ids=np.array(['t:0', 't:1', 't:2']),
    labels=np.zeros(3, np.int32),
    sizes=np.full(3, 9),
    read=lambda i: cv2.imencode('.png', images[i])[1].tobytes(),
  )

  def predict(image_nhwc):
    left = image_nhwc[:, :, 0].astype(jnp.float32).mean((1, 2))
    return jnp.stack([left, 255 - left], axis=1)

  found, valid = evaluate.over_views(
    predict,
    pool,
    resize=9,
    crop=5,
    batch=4,
    mesh=mesh.make(),
    threads=1,
    label='test',
    views=views,
    mirror=mirror,
    scales=(1.0, 5 / 9),
  )
  assert valid.all()
  for row, image in zip(found, images, strict=True):
    shrunk = preprocess.resize(image, 5)
    cuts = {
      'centre': [image[2:7, 2:7]],
      'ten': [
        image[y : y + 5, x : x + 5]
        for y, x in ((2, 2), (0, 0), (0, 4), (4, 0), (4, 4))
      ],
      'dense': [image, shrunk],
    }[views]
    if mirror and views != 'centre':
      cuts += [cut[:, ::-1] for cut in cuts]
    expected = np.mean([cut[:, 0].mean() for cut in cuts])
    np.testing.assert_allclose(row, [expected, 255 - expected], rtol=1e-5)
