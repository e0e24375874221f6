"""What bytes must become before a network's weights mean anything."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp

_ORDERS = 'RGB', 'BGR'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
  """The input that a set of weights was trained on.

  input = (byte range / 255 - mean) / std, channels in the order named

  It travels with the weights, never as a setting.

  Attributes:
    order: 'RGB' or 'BGR'; `mean` and `std` are in this order.
    range: what byte 255 is before the mean is subtracted.
    mean: of each channel, in units of `range`.
    std: of each channel, in units of `range`.
    resize: side in pixels to which images were resized.
    crop: side in pixels of the part that the network saw.

  Raises:
    ValueError: if a value is not of its kind.
  """

  order: str
  range: float
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  resize: int
  crop: int

  def __post_init__(self):
    if self.order not in _ORDERS:
      raise ValueError(f'order is one of {_ORDERS}, not {self.order!r}')
    for name in ('mean', 'std'):
      numbers = tuple(float(x) for x in getattr(self, name))
      if len(numbers) != 3:
        raise ValueError(f'{name} has one number per channel: {numbers}')
      object.__setattr__(self, name, numbers)
    numbers = (self.range, *self.mean, *self.std)
    if not all(map(math.isfinite, numbers)) or min(self.range, *self.std) <= 0:
      raise ValueError(f'range and std are positive numbers: {self}')
    sides = self.crop, self.resize
    if not (all(isinstance(x, int) for x in sides) and min(sides) > 0):
      raise ValueError(f'crop and resize are in pixels: {sides}')
    if self.crop > self.resize:
      raise ValueError(f'crop is within resize: {sides}')

  def __call__(self, image_nhwc: jax.Array) -> jax.Array:
    """Images as the network wants them.

    Args:
      image_nhwc: RGB, uint8 [n, h, w, 3].

    Returns:
      float32 [n, h, w, 3].
    """
    mean, std = (
      jnp.asarray(x, jnp.float32)[None, None, None]
      for x in (self.mean, self.std)
    )
    if self.order == 'BGR':
      image_nhwc = image_nhwc[..., ::-1]
    return (image_nhwc.astype(jnp.float32) / (255 / self.range) - mean) / std

  def __str__(self):
    mean, std = (', '.join(f'{x:g}' for x in v) for v in (self.mean, self.std))
    over = '' if self.std == (1, 1, 1) else f', divided by ({std})'
    return f'{self.order}, 0..{self.range:g} minus ({mean}){over}'

  def encode(self) -> str:
    """The convention as one line of JSON."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def decode(cls, text: str) -> 'Convention':
    """The convention that `encode` wrote.

    Raises:
      ValueError: if the text is none.
    """
    try:
      return cls(**json.loads(text))
    except (AttributeError, TypeError) as error:
      raise ValueError(str(error)) from error


# Caffe's ImageNet models, ResNet-152 of the authors' release of Ge & Yu, CVPR
# 2017 (arXiv 1702.08690), among them.
CAFFE = Convention(
  order='BGR',
  range=255,
  mean=(104, 117, 123),
  std=(1, 1, 1),
  resize=256,
  crop=224,
)
# The mean image of ILSVRC 2012 that Caffe's AlexNet subtracts, averaged over
# its pixels: the image itself is no part of the weights.
CAFFE_MEAN_IMAGE = dataclasses.replace(
  CAFFE, mean=(104.00698793, 116.66876762, 122.67891434)
)
# The models of torchvision, and most of timm's.
TORCHVISION = Convention(
  order='RGB',
  range=1,
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
  resize=256,
  crop=224,
)
# BiT's models, as they were pretrained.
BIT = dataclasses.replace(
  TORCHVISION, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
