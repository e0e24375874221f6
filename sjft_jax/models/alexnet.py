"""The convolutions of AlexNet, as Caffe and as torchvision have them."""

from sjft_jax.models.frozen import Conv, LocalNorm, Network, Pool

# Maps of 54, 27 and 13 pixels for an input of 224.
# Source: BVLC's bvlc_alexnet, as the release's feature extraction uses it.
CAFFE = Network(
  (
    Conv('conv1', 96, 11, stride=4),
    LocalNorm(),
    Pool(ceil=True),
    Conv('conv2', 256, 5, padding=2, groups=2),
    LocalNorm(),
    Pool(ceil=True),
    Conv('conv3', 384, 3, padding=1),
    Conv('conv4', 384, 3, padding=1, groups=2),
    Conv('conv5', 256, 3, padding=1, groups=2),
  ),
  default=('conv1', 'conv2'),
)

# Maps of 55, 27 and 13 pixels for an input of 224.
# Source: A. Krizhevsky, "One weird trick", 2014, as torchvision has it.
TORCHVISION = Network(
  (
    Conv('conv1', 64, 11, stride=4, padding=2),
    Pool(ceil=False),
    Conv('conv2', 192, 5, padding=2),
    Pool(ceil=False),
    Conv('conv3', 384, 3, padding=1),
    Conv('conv4', 256, 3, padding=1),
    Conv('conv5', 256, 3, padding=1),
  ),
  default=('conv1', 'conv2'),
)
