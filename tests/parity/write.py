"""Writes the fixtures of this directory by torch and torchvision.

  python -m tests.parity.write

in an environment that has them, besides NumPy. The tests need neither.
"""

import pathlib

import numpy as np
import torch
import torchvision

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
      response = x.permute(0, 2, 3, 1).numpy()
      found[f'conv{len(found) + 1}'] = response.astype(np.float32)
  kept = {k: v for k, v in shapes.items() if k.startswith('features.')}
  # The classifier is 56 million numbers, and comes last.
  assert list(shapes)[: len(kept)] == list(kept)
  save('alexnet_torchvision', kept, found)


def save(name, shapes, outputs):
  """An archive of outputs, and of the names and shapes of the weights."""
  np.savez_compressed(
    HERE / f'{name}.npz',
    names=np.array(list(shapes)),
    shapes=np.array([' '.join(map(str, s)) for s in shapes.values()]),
    **outputs,
  )


if __name__ == '__main__':
  alexnet()
