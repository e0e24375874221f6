import dataclasses
import json

import numpy as np
import pytest

from sjft_jax.models.convention import CAFFE, TORCHVISION, Convention

IMAGE = np.array([[[[0, 128, 255]]]], np.uint8)


def test_caffe_by_hand():
  # Blue 255, green 128 and red 0, less their means.
  np.testing.assert_array_equal(CAFFE(IMAGE), [[[[151, 11, -123]]]])


def test_torchvision_by_hand():
  expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, 0.594 / 0.225]
  np.testing.assert_allclose(TORCHVISION(IMAGE)[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('convention', [CAFFE, TORCHVISION])
def test_comes_back_from_text(convention):
  again = Convention.decode(convention.encode())
  assert again == convention
  assert hash(again) == hash(convention)


def test_reads_as_a_sentence():
  assert str(CAFFE) == 'BGR, 0..255 minus (104, 117, 123)'
  assert str(TORCHVISION) == (
    'RGB, 0..1 minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)'
  )


@pytest.mark.parametrize(
  'change',
  [
    {'order': 'GBR'},
    {'order': 3},
    {'range': 0},
    {'range': '255'},
    {'mean': (1, 2)},
    {'mean': 'abc'},
    {'mean': None},
    {'std': (1, 1, 0)},
    {'std': (1, 1, float('nan'))},
    {'crop': 300},
    {'crop': 224.5},
  ],
)
def test_nonsense_is_refused(change):
  text = dict(dataclasses.asdict(CAFFE)) | change
  with pytest.raises(ValueError):
    Convention.decode(json.dumps(text))


@pytest.mark.parametrize('text', ['', 'BGR', '[]', '3', '{"order": "RGB"}'])
def test_other_texts_are_refused(text):
  with pytest.raises(ValueError):
    Convention.decode(text)
