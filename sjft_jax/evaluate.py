"""Posteriors, mean class accuracy, and the fusion of rounds."""

import jax
import numpy as np

from sjft_jax import mesh as meshes
from sjft_jax import progress
from sjft_jax.data import pipelines


def posteriors(predict, dataset, *, resize, crop, batch, mesh, threads, label):
  """Class probabilities of every image of a data set, by centre crop.

  Args:
    predict: jitted function of uint8 images [n, crop, crop, 3] to
      probabilities float32 [n, c].
    dataset: readable images.
    resize: side in pixels to which images are resized, aspect not kept.
    crop: side in pixels of the centre that is kept.
    batch: images at a time, rounded up to a multiple of the device count.
    mesh: the devices.
    threads: decoding threads, 0 for one per core.
    label: what the progress bar says.

  Returns:
    (probability float32 [n, c], valid bool [n]): rows of images that cannot
    be decoded are not valid.
  """
  found, valid = [], []
  with progress.bar(len(dataset), label) as bar:
    for block in pipelines.sweep(
      dataset,
      resize=resize,
      crop=crop,
      batch=meshes.round_up(min(batch, len(dataset)), mesh),
      threads=threads,
    ):
      keep = block.index >= 0
      found.append(predict(meshes.shard(block.image, mesh))[keep])
      valid.append(block.valid[keep])
      bar.update(int(keep.sum()))
  return np.concatenate(jax.device_get(found)), np.concatenate(valid)


def mean_class_accuracy(probability_nc, label_n) -> float:
  """Accuracy of each class, averaged over the classes that occur.

  Args:
    probability_nc: class probabilities, float [n, c].
    label_n: true classes, int [n].

  Returns:
    A fraction, 0..1.

  Raises:
    ValueError: if there is no image.
  """
  if not len(label_n):
    raise ValueError(f'At least one image: {probability_nc.shape=}.')
  right_n = probability_nc.argmax(axis=1) == label_n
  right_c = np.bincount(label_n, weights=right_n)
  count_c = np.bincount(label_n)
  return float((right_c[count_c > 0] / count_c[count_c > 0]).mean())


def fuse(probabilities):
  """The average of the rounds' class probabilities, float64 [n, c]."""
  return np.mean(np.asarray(probabilities, np.float64), axis=0)
