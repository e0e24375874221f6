"""Writes the fixtures of this directory by torch, torchvision and timm.

  python -m tests.parity.write

in an environment that has them, besides NumPy. The tests need neither.
"""

import pathlib
import tempfile

import numpy as np
import timm
import torch
import torchvision
from torch.nn import functional

from tests.parity import weights

HERE = pathlib.Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model(make):
  """A float64 torchvision model in evaluation, its state and their shapes."""
  network = make(weights=None).eval()
  shapes = {
    name: tuple(value.shape)
    for name, value in network.state_dict().items()
    if value.is_floating_point()
  }
  state = weights.random_state(shapes)
  network.load_state_dict(
    {name: torch.from_numpy(value) for name, value in state.items()},
    strict=False,
  )
  return network.double(), shapes


def normalised(image_nhwc):
  """uint8 images as torchvision's models want them, [n, c, h, w]."""
  scaled = torch.from_numpy(image_nhwc).double().permute(0, 3, 1, 2) / 255
  mean, std = (torch.tensor(x).double()[:, None, None] for x in (MEAN, STD))
  return (scaled - mean) / std


@torch.inference_mode()
def alexnet():
  """Responses of the convolutions before their ReLU."""
  network, shapes = model(torchvision.models.alexnet)
  x = normalised(weights.random_image(1, 63, 71, 3))
  found = {}
  for layer in network.features:
    # In place, a ReLU would change the responses that are kept.
    x = torch.relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
    if isinstance(layer, torch.nn.Conv2d):
      found[f'conv{len(found) + 1}'] = x.permute(0, 2, 3, 1)
  kept = {k: v for k, v in shapes.items() if k.startswith('features.')}
  # The classifier is 56 million numbers, and comes last.
  assert list(shapes)[: len(kept)] == list(kept)
  save('alexnet_torchvision', kept, found)


@torch.inference_mode()
def resnet_torchvision():
  """Pooled features and logits of ResNet-152."""
  network, shapes = model(torchvision.models.resnet152)
  pooled = []
  network.avgpool.register_forward_hook(
    lambda module, given, found: pooled.append(found.flatten(1))
  )
  logits = network(normalised(weights.random_image(2, 75, 64, 3)))
  save(
    'resnet152_torchvision', shapes, {'feature': pooled[0], 'logits': logits}
  )


@torch.inference_mode()
def resnet_caffe():
  """Pooled features of the release's network with two blocks a stage."""
  shapes = {}

  def conv(name, o, i, side=1):
    shapes[f'{name}/0'] = o, i, side, side

  def norm(name, c):
    shapes.update(
      {f'bn{name}/0': (c,), f'bn{name}/1': (c,), f'bn{name}/2': (1,)}
    )
    shapes.update({f'scale{name}/0': (c,), f'scale{name}/1': (c,)})

  conv('conv1', 64, 3, 7)
  norm('_conv1', 64)
  below = 64
  for stage in range(2, 6):
    c = 64 * 2 ** (stage - 2)
    for label in 'ab':
      name = f'{stage}{label}'
      if label == 'a':
        conv(f'res{name}_branch1', 4 * c, below)
      conv(f'res{name}_branch2a', c, below)
      norm(f'{name}_branch2a', c)
      conv(f'res{name}_branch2b', c, c, 3)
      norm(f'{name}_branch2b', c)
      conv(f'res{name}_branch2c', 4 * c, c)
      norm(name, 4 * c)
      below = 4 * c
  state = {
    name: torch.from_numpy(value).double()
    for name, value in weights.random_caffe_state(shapes).items()
  }

  def convolved(x, name, **settings):
    return functional.conv2d(x, state[f'{name}/0'], **settings)

  def activated(x, name):
    mean, var, factor = (state[f'bn{name}/{i}'] for i in range(3))
    scale, bias = (state[f'scale{name}/{i}'] for i in range(2))
    x = functional.batch_norm(
      x, mean / factor, var / factor, scale, bias, eps=1e-5
    )
    return torch.relu(x)

  image = torch.from_numpy(weights.random_image(2, 75, 64, 3)).double()
  x = image.flip(-1) - torch.tensor([104.0, 117.0, 123.0])
  x = convolved(x.permute(0, 3, 1, 2), 'conv1', stride=2, padding=3)
  x = activated(x, '_conv1')
  read = functional.max_pool2d(x, 3, 2, ceil_mode=True)
  for stage in range(2, 6):
    for label in 'ab':
      name = f'res{stage}{label}'
      stride = 2 if stage > 2 and label == 'a' else 1
      if label == 'a':
        identity = convolved(read, f'{name}_branch1', stride=stride)
      x = convolved(read, f'{name}_branch2a', stride=stride)
      x = activated(x, f'{stage}{label}_branch2a')
      x = convolved(x, f'{name}_branch2b', padding=1)
      x = activated(x, f'{stage}{label}_branch2b')
      identity = identity + convolved(x, f'{name}_branch2c')
      read = activated(identity, f'{stage}{label}')
  save('resnet26_caffe', shapes, {'feature': read.mean((2, 3))})


@torch.inference_mode()
def bit_timm():
  """Pooled features and logits of BiT's R50x1, read by timm from its npz."""
  shapes = {
    'resnet/root_block/standardized_conv2d/kernel': (7, 7, 3, 64),
    'resnet/group_norm/gamma': (2048,),
    'resnet/group_norm/beta': (2048,),
    'resnet/head/conv2d/kernel': (1, 1, 2048, 7),
    'resnet/head/conv2d/bias': (7,),
  }
  below = 64
  for stage, blocks in enumerate((3, 4, 6, 3), 1):
    c = 32 * 2**stage
    for unit in range(1, blocks + 1):
      name = f'resnet/block{stage}/unit{unit:02}'
      parts = {'a': (1, below, c), 'b': (3, c, c), 'c': (1, c, 4 * c)}
      if unit == 1:
        parts['a/proj'] = 1, below, 4 * c
      for part, (side, i, o) in parts.items():
        where = f'{name}/{part}'
        shapes[f'{where}/standardized_conv2d/kernel'] = side, side, i, o
        if part in ('a', 'b', 'c'):
          shapes[f'{where}/group_norm/gamma'] = (i,)
          shapes[f'{where}/group_norm/beta'] = (i,)
      below = 4 * c
  network = timm.create_model('resnetv2_50x1_bit', num_classes=7).eval()
  with tempfile.TemporaryDirectory() as where:
    np.savez(f'{where}/bit.npz', **weights.random_state(shapes))
    network.load_pretrained(f'{where}/bit.npz')
  for module in network.modules():
    if isinstance(module, timm.layers.StdConv2d):
      # The authors'; timm has another.
      module.eps = 1e-10
  network.double()
  image = torch.from_numpy(weights.random_image(2, 75, 64, 3)).double()
  image = image.permute(0, 3, 1, 2) / 127.5 - 1
  feature = network.forward_features(image)
  logits = network.forward_head(feature)
  outputs = {'feature': feature.mean((2, 3)), 'logits': logits}
  save('bit_r50', shapes, outputs)


def files():
  """The same tensors in both formats of torch.save, and as NumPy's."""
  torch.manual_seed(0)
  state = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
  ).state_dict()
  state['view'] = torch.randn(4, 6).t()[1:, ::2]
  state['half'] = torch.randn(3).half()
  state['brain'] = torch.randn(3).bfloat16()
  state['none'] = torch.zeros(0, 3)
  state['parameter'] = torch.nn.Parameter(torch.randn(2, 3))
  torch.save(state, HERE / 'new.pth')
  torch.save(
    {'epoch': 3, 'state_dict': state},
    HERE / 'old.pth',
    _use_new_zipfile_serialization=False,
  )
  np.savez_compressed(
    HERE / 'pth.npz',
    **{name: x.detach().double().numpy() for name, x in state.items()},
  )


def save(name, shapes, outputs):
  """An archive of outputs, and of the names and shapes of the weights."""
  np.savez_compressed(
    HERE / f'{name}.npz',
    names=np.array(list(shapes)),
    shapes=np.array([' '.join(map(str, s)) for s in shapes.values()]),
    **{key: np.float32(value) for key, value in outputs.items()},
  )


if __name__ == '__main__':
  files()
  alexnet()
  resnet_torchvision()
  resnet_caffe()
  bit_timm()
