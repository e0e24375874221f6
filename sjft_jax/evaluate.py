"""Answers by one view or many, what they are worth, and their fusion."""

import jax
import numpy as np

from sjft_jax import mesh as meshes
from sjft_jax import progress
from sjft_jax.data import pipelines, preprocess


def _centre(resize, crop, mirror, scales):
  del mirror, scales
  return [(resize, crop, lambda x, crop: preprocess.center_crop(x, crop)[None])]


def _ten(resize, crop, mirror, scales):
  del scales
  return [(resize, crop, lambda x, crop: preprocess.ten_crops(x, crop, mirror))]


def _dense(resize, crop, mirror, scales):
  del crop

  def whole(image, crop):
    del crop
    both = [image, preprocess.mirror(image)] if mirror else [image]
    return np.stack(both)

  sizes = [round(resize * scale) for scale in scales]
  return [(size, size, whole) for size in sizes]


# (resize, crop, mirror, scales) -> passes over the images, each with its side
# in pixels, that of its views, and image -> views uint8 [v, side, side, 3].
VIEWS = {'centre': _centre, 'ten': _ten, 'dense': _dense}


def over_views(
  answer,
  dataset,
  *,
  resize,
  crop,
  batch,
  mesh,
  threads,
  label,
  views='centre',
  mirror=True,
  scales=(1.0,),
):
  """What is answered about every image of a data set, averaged over views.

  'centre' is the centre crop. 'ten' are the centre and the four corners, and
  their mirror images. 'dense' is the whole image at every scale and its mirror
  image: where the network's last pooling is global, the class scores averaged
  over all places are those of the averaged feature.

  Args:
    answer: jitted function of uint8 images [n, side, side, 3] to any float
      [n, d], as class probabilities, or logits and features.
    dataset: readable images.
    resize: side in pixels to which images are resized, aspect not kept.
    crop: side in pixels of a crop.
    batch: crops at a time; views of other areas in proportion, rounded so
      that the devices share them.
    mesh: the devices.
    threads: decoding threads, 0 for one per core.
    label: what the progress bar says.
    views: row of VIEWS.
    mirror: whether mirror images are views.
    scales: of 'dense', in units of `resize`.

  Returns:
    (answers float [n, d], valid bool [n]): rows of images that cannot be
    decoded are not valid.

  Source: Simonyan & Zisserman, ICLR 2015, section 3.2, for 'dense'.
  """
  found = []
  passes = VIEWS[views](resize, crop, mirror, scales)
  with progress.bar(len(passes) * len(dataset), label) as bar:
    for size, side, cut in passes:
      v = len(cut(np.zeros((size, size, 3), np.uint8), side))
      rows = max(1, round(batch * (crop / side) ** 2 / v))
      answers, valid = [], []
      for block in pipelines.sweep(
        dataset,
        resize=size,
        crop=side,
        batch=meshes.round_up(min(rows, len(dataset)), mesh),
        threads=threads,
        cut=cut,
      ):
        keep = block.index >= 0
        image_nhwc = block.image.reshape(-1, side, side, 3)
        answer_nd = jax.device_get(answer(meshes.shard(image_nhwc, mesh)))
        answer_nvd = answer_nd.reshape(len(keep), v, -1)
        answers.append(answer_nvd[keep].mean(axis=1))
        valid.append(block.valid[keep])
        bar.update(int(keep.sum()))
      found.append(np.concatenate(answers))
  # Of one pass the mean would be a second copy.
  mean = found[0] if len(found) == 1 else np.mean(found, axis=0)
  return mean, np.concatenate(valid)


def accuracy(probability_nc, label_n) -> float:
  """The fraction of images whose likeliest class is the true one."""
  return float((probability_nc.argmax(axis=1) == label_n).mean())


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


def confusion(probability_nc, label_n) -> np.ndarray:
  """How many images of each class are taken for each class.

  Args:
    probability_nc: class probabilities, float [n, c].
    label_n: true classes, int [n].

  Returns:
    int64 [c, c]: row the true class, column the likeliest.
  """
  c = probability_nc.shape[1]
  cell_n = np.asarray(label_n) * c + probability_nc.argmax(axis=1)
  return np.bincount(cell_n, minlength=c * c).reshape(c, c)


def calibration_error(probability_nc, label_n, bins: int = 15) -> float:
  """How far confidence is from accuracy, on average (ECE).

  ECE = sum_b n_b / n |accuracy of bin b - mean confidence of bin b|, images in
  bins of equal width by the probability p of their likeliest class; bin b
  holds b / bins < p <= (b + 1) / bins.

  Args:
    probability_nc: class probabilities, float [n, c].
    label_n: true classes, int [n].
    bins: number of bins.

  Returns:
    A fraction, 0..1.

  Source: Guo et al., ICML 2017, eq. 3.
  """
  confidence_n = probability_nc.max(axis=1).astype(np.float64)
  right_n = probability_nc.argmax(axis=1) == label_n
  bin_n = np.ceil(confidence_n * bins).astype(int) - 1
  gap_b = np.bincount(bin_n, weights=right_n - confidence_n, minlength=bins)
  return float(np.abs(gap_b).sum() / len(label_n))


def fuse(probabilities):
  """The average of the rounds' class probabilities, float64 [n, c]."""
  return np.mean(np.asarray(probabilities, np.float64), axis=0)


def average(trees):
  """The average of the rounds' weights and running averages.

  Args:
    trees: pytrees of arrays, of one structure.

  Returns:
    A pytree like the first.
  """
  return jax.tree.map(lambda *x: sum(x) / len(x), *trees)
