"""Your own images: DIR/class/image, any sizes and common formats.

  python -m sjft_jax.main --config=configs/folders.py --workdir=DIR \
      --config.target.train=DIR --config.target.test=DIR \
      --config.source.main.dir=DIR

More sources, each with its own classes, are named after a colon:

  --config=configs/folders.py:imagenet,places \
      --config.source.imagenet.dir=DIR --config.source.places.dir=DIR

Sized for a laptop: a small network on 64-pixel images, pretrained on the
source. For larger work set model.*, train.* and describe.* as in default.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(sources='main'):
  c = default.get_config()
  c.source = ConfigDict({n: default.source() for n in sources.split(',')})
  c.describe.resize = c.describe.crop = 64
  c.describe.batch = 64
  c.model.trunk, c.model.width = 'resnet26', 0.25
  c.model.momentum = 0.9
  c.pretrain.steps = 2000
  c.train.resize, c.train.crop = 72, 64
  c.train.steps = 200
  c.train.micro_batches = 1
  c.train.target_batch = c.train.source_batch = 32
  c.train.checkpoint_every = 100
  c.optim.boundaries = (130,)
  return c
