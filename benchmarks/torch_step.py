"""The peer of train_step.py: the same networks and update in PyTorch.

Needs torch and nothing else; prints one row as JSON. Channels lie last, which
is the faster of PyTorch's layouts here.
"""

import json
import resource
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional

SIZES = {
  'resnet26': (2, 2, 2, 2),
  'resnet50': (3, 4, 6, 3),
  'resnet152': (3, 8, 36, 3),
}


def conv(inputs, outputs, side=1, stride=1):
  """A convolution without bias that keeps the size but for the stride."""
  return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


class Block(nn.Module):
  """Identity mapping, as the release has it."""

  def __init__(self, inputs, features, stride, project, activate):
    super().__init__()
    self.norm = nn.BatchNorm2d(inputs) if activate else None
    self.project = conv(inputs, 4 * features, 1, stride) if project else None
    self.a, self.norm_a = conv(inputs, features, 1, stride), norm(features)
    self.b, self.norm_b = conv(features, features, 3), norm(features)
    self.c = conv(features, 4 * features)

  def forward(self, x):
    """The next raw sum."""
    total = x
    if self.norm is not None:
      x = functional.relu(self.norm(x))
    if self.project is not None:
      total = self.project(x)
    x = functional.relu(self.norm_a(self.a(x)))
    x = functional.relu(self.norm_b(self.b(x)))
    return total + self.c(x)


def norm(features):
  """Batch normalisation."""
  return nn.BatchNorm2d(features)


class Network(nn.Module):
  """Trunk and two heads."""

  def __init__(self, sizes, width):
    super().__init__()
    features = inputs = round(64 * width)
    self.conv1, self.norm1 = conv(3, features, 7, 2), norm(features)
    blocks = []
    for stage, size in enumerate(sizes):
      for block in range(size):
        stride = 2 if stage > 0 and block == 0 else 1
        first = stage == 0 and block == 0
        width = features * 2**stage
        blocks.append(Block(inputs, width, stride, block == 0, not first))
        inputs = 4 * width
    self.blocks, self.norm5 = nn.Sequential(*blocks), norm(inputs)
    self.target, self.source = nn.Linear(inputs, 100), nn.Linear(inputs, 1000)

  def forward(self, x):
    """Logits of both halves."""
    x = functional.relu(self.norm1(self.conv1(x)))
    x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    x = functional.relu(self.norm5(self.blocks(x))).mean((2, 3))
    target, source = x.chunk(2)
    return self.target(target), self.source(source)


def main():
  """Measures one case."""
  case = json.loads(sys.argv[1])
  network = Network(SIZES[case['trunk']], case['width'])
  network = network.to(memory_format=torch.channels_last)
  optimiser = torch.optim.SGD(
    network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4
  )
  half, size = case['half'], case['size']
  image = torch.randint(0, 256, (2 * half, 3, size, size)).float() - 117
  image = image.to(memory_format=torch.channels_last)
  target, source = torch.randint(0, 100, (2, half))
  cast = torch.autocast(
    'cpu', torch.bfloat16, enabled=case['dtype'] == 'bfloat16'
  )
  seconds, processor = [], []
  for _ in range(case['steps'] + 1):
    start, start_processor = time.monotonic(), time.process_time()
    optimiser.zero_grad()
    with cast:
      logits = network(image)
    loss = functional.cross_entropy(logits[0].float(), target)
    loss = loss + functional.cross_entropy(logits[1].float(), source)
    loss.backward()
    optimiser.step()
    seconds.append(time.monotonic() - start)
    processor.append(time.process_time() - start_processor)
  row = {
    'seconds': min(seconds[1:]),
    'median': statistics.median(seconds[1:]),
    'processor': min(processor[1:]),
    'compile': seconds[0] - statistics.median(seconds[1:]),
    'images': 2 * half,
    'peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  }
  print(json.dumps(row))


if __name__ == '__main__':
  main()
