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
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError
from sjft_jax.ops import gabor, groups
from tests import small

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
  dataset = Dataset(
    name='set',
    classes=('any',),
    ids=np.array([f'set:{i}' for i in range(n)]),
    labels=np.zeros(n, np.int32),
    sizes=np.array([len(f) for f in files]),
    read=files.__getitem__,
  )
  return dataset, np.stack(pixels)


def fitted(dataset, devices=1, batch=4, partly=True, **changes):
  c = settings(**changes)
  return describe.fit(
    describe.load_bank(c),
    dataset,
    bins=8,
    binning=c.binning,
    mesh=mesh.make(jax.devices()[:devices]),
    batch=batch,
    threads=1,
    partly=partly,
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


def test_off_the_cpu_every_group_is_of_one_size_and_full(images, monkeypatch):
  """Or what an image comes to would depend on the number of devices."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  seen = []

  def responses(image_nhwc):
    seen.append(len(image_nhwc))
    return [image_nhwc.astype(np.float32)]

  small.bank(monkeypatch.setattr)
  colours = describe.load_bank(settings())
  bank = dataclasses.replace(colours, responses=responses)
  monkeypatch.setattr(describe, 'load_bank', lambda c: bank)
  size = groups.size(bank.shapes)
  for devices, batch in ((1, 40), (8, 4)):
    seen.clear()
    describer = fitted(images[0], devices, batch)
    list(describer.blocks(images[0]))
    assert set(seen) == {size}
    assert describer.batch % (devices * size) == 0


def test_a_describer_made_of_another_has_its_own_clock(images, monkeypatch):
  small.bank(monkeypatch.setattr)
  describer = fitted(images[0])
  other = dataclasses.replace(describer, threads=2)
  list(other.blocks(images[0]))
  assert min(other.waited.values()) > 0
  assert describer.waited == {'images': 0.0, 'devices': 0.0}


@pytest.mark.parametrize('binning', describe.BINNINGS)
@pytest.mark.parametrize('partly', [False, True])
def test_edges_are_of_one_set_of_images(images, binning, partly, monkeypatch):
  small.bank(monkeypatch.setattr)
  dataset = images[0].subset(np.delete(np.arange(11), BAD))
  reads = []

  def vanishing(i):
    reads.append(i)
    if i == 1 and reads.count(i) > 1:
      raise FileNotFoundError(errno.ENOENT, 'No such file')
    return dataset.read(i)

  lost = dataclasses.replace(dataset, read=vanishing)
  with pytest.raises(UserError, match=r'set:1: cannot be read: No such file'):
    fitted(lost, partly=partly, binning=binning)
  # As it is in every pass, now.
  edges_cb = fitted(lost, binning=binning).edges_cb
  rest = fitted(dataset.subset(np.delete(np.arange(10), 1)), binning=binning)
  np.testing.assert_array_equal(edges_cb, rest.edges_cb)
  with pytest.raises(UserError, match=r'set:1: cannot be read: No such file'):
    fitted(lost, partly=False, binning=binning)


def test_edges_are_not_made_without_an_image_that_may_come_back(images):
  dataset, _ = images

  def stale(i):
    if i == 1:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return dataset.read(i)

  with pytest.raises(UserError, match='set:1: cannot be read now: Stale'):
    fitted(dataclasses.replace(dataset, read=stale))


def test_edges_are_read_back_and_what_are_none_is_refused(
  images, tmp_path, monkeypatch
):
  small.bank(monkeypatch.setattr)
  describer = fitted(images[0])
  path = tmp_path / 'edges.npz'
  describer.save(path)
  run_on = dict(mesh=describer.mesh, batch=4, threads=1)
  again = describe.load(path, describer.bank, **run_on)
  assert again.batch == describer.batch
  for name in ('edges_cb', 'lower_c', 'upper_c'):
    expected = getattr(describer, name)
    np.testing.assert_array_equal(getattr(again, name), expected)

  def write(name, **arrays):
    np.savez(tmp_path / name, **arrays)

  bounds = {'lower': again.lower_c, 'upper': again.upper_c}
  write('other.npz', edges=again.edges_cb)
  write('flat.npz', edges=again.edges_cb.ravel(), **bounds)
  write('objects.npz', edges=np.array([None]), **bounds)
  np.save(tmp_path / 'array.npy', again.edges_cb)
  whole = path.read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'empty.npz').write_bytes(b'')
  for name in ('other', 'flat', 'objects', 'cut', 'empty', 'missing'):
    with pytest.raises(UserError, match=rf'{name}\.npz could not be read: '):
      describe.load(tmp_path / f'{name}.npz', describer.bank, **run_on)
  with pytest.raises(UserError, match=r'array\.npy could not be read: '):
    describe.load(tmp_path / 'array.npy', describer.bank, **run_on)
