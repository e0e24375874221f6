"""The whole way from encoded images to counts, on several devices."""

import dataclasses
import errno

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from sjft_jax import describe, mesh
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from sjft_jax.ops import gabor

SIZE = 20
BAD = 3


def settings(**changes):
  c = ConfigDict(default.get_config().describe)
  c.resize = c.crop = SIZE
  c.update(changes)
  return c


@pytest.fixture(scope='module')
def images():
  """Blurred noise: one of them flat, one of them no image at all."""
  rng = np.random.default_rng(0)
  pixels = [
    cv2.GaussianBlur(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), (0, 0), s)
    for s in np.linspace(0.5, 4, 11)
  ]
  pixels[5][:] = 77
  files = [cv2.imencode('.png', p[..., ::-1])[1].tobytes() for p in pixels]
  files[BAD] = b'no image'
  n = len(files)
  dataset = datasets.Dataset(
    name='set',
    classes=('any',),
    ids=np.array([f'set:{i}' for i in range(n)]),
    labels=np.zeros(n, np.int32),
    sizes=np.array([len(f) for f in files]),
    read=files.__getitem__,
  )
  return dataset, np.stack(pixels)


def fitted(dataset, devices=1, batch=4, **changes):
  c = settings(**changes)
  return describe.fit(
    describe.load_bank(c),
    dataset,
    bins=8,
    binning=c.binning,
    mesh=mesh.make(jax.devices()[:devices]),
    batch=batch,
    threads=1,
  )


def test_counts_are_those_of_a_plain_computation(images):
  """Responses in their places, NumPy's quantiles by rank, a search each."""
  dataset, pixels = images
  describer = fitted(dataset)
  blocks = list(describer.blocks(dataset, rows=8))
  index = np.concatenate([b.index_n for b in blocks])
  counts = np.concatenate([b.counts_nd for b in blocks]).reshape(-1, 48, 8)
  np.testing.assert_array_equal(index, np.delete(np.arange(11), BAD))
  assert [bad for b in blocks for bad, _ in b.bad] == [BAD]

  good = np.delete(pixels, BAD, axis=0)
  grey = gabor.luma(good)
  filters = gabor.prepare(gabor.bank(), SIZE, SIZE, (1, 1, 1, 1))
  scales = gabor.responses(grey - grey[:, :1, :1], filters)
  names = [
    f'scale {s}, {n * 30} degrees, {part}'
    for s in (1, 2, 3, 4)
    for n in range(6)
    for part in ('real', 'imaginary')
  ]
  plain = np.concatenate(scales, axis=-1).reshape(len(good), -1, 48)
  for c, name in enumerate(describer.bank.names):
    value = plain[..., names.index(name)]
    ranked = np.sort(value.ravel())
    edges = ranked[np.arange(1, 8) * ranked.size // 8]
    # Two compiled programs round differently, by far less than this.
    near = 1e-5 * np.abs(value).max()
    found = describer.edges_cb[c]
    np.testing.assert_allclose(found, edges, rtol=0, atol=near)
    for i, row in enumerate(value):
      below = np.cumsum(counts[i, c])[:-1]
      assert counts[i, c].sum() == row.size
      for edge, count in zip(found, below, strict=True):
        assert (row < edge - near).sum() <= count <= (row < edge + near).sum()


def test_neither_devices_nor_batches_change_a_bit(images):
  dataset, _ = images
  one = fitted(dataset)
  expected = [b.counts_nd for b in one.blocks(dataset)]
  for devices, batch in ((1, 3), (8, 8)):
    other = fitted(dataset, devices, batch)
    np.testing.assert_array_equal(other.edges_cb, one.edges_cb)
    counts = [b.counts_nd for b in other.blocks(dataset, rows=4)]
    np.testing.assert_array_equal(
      np.concatenate(counts), np.concatenate(expected)
    )


@pytest.mark.parametrize(
  'changes', [{'binning': 'caffe'}, {'decimate': True}], ids=str
)
def test_every_channel_counts_its_points_once(images, changes):
  dataset, _ = images
  describer = fitted(dataset, **changes)
  (block,) = describer.blocks(dataset)
  fraction_ncb = describer.fractions(block.counts_nd).reshape(10, 48, 8)
  np.testing.assert_allclose(fraction_ncb.sum(-1), 1, rtol=1e-12)
  assert (np.diff(describer.edges_cb, axis=1) >= 0).all()
  assert (describer.edges_cb != fitted(dataset).edges_cb).any()
  # Every filter weighs the same, however many maps they are spread over.
  np.testing.assert_allclose(describer.weight_d, 1 / 48)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'bank': 'wavelets'}, 'bank is one of gabor, conv'),
    ({'binning': 'round'}, 'binning is one of paper, caffe'),
    ({'crop': 21}, 'crop must be 1..describe.resize'),
  ],
)
def test_unfit_settings_are_refused(images, changes, message):
  with pytest.raises(UserError, match=message):
    fitted(images[0], **changes)


def test_edges_are_not_made_without_an_image_that_may_come_back(images):
  dataset, _ = images

  def stale(i):
    if i == 1:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return dataset.read(i)

  with pytest.raises(UserError, match='set:1: cannot be read now: Stale'):
    fitted(dataclasses.replace(dataset, read=stale))
