"""Does borrowing help on photographs? Few-shot targets, one source, eight arms.

  python -m sjft_jax.sweep --config=configs/sweeps/photographs.py:5 \
      --workdir=DIR --config.source.main.dir=DIR \
      --config.target.train=DIR --config.target.test=DIR

The number is that of the training images a class, drawn anew for each of five
seeds; the test images are all used. weights/squeezenet.safetensors is made by
sjft_jax.convert of SqueezeNet v1.0, for the trunk and, its first layer, for the
descriptors. Sized for images of 64 to 96 pixels: Tiny-ImageNet's (35,000) as
source, Oxford Flowers 102 or Caltech 101 as target.

Every arm gets a learning rate and a length by the same rule on folds of the
training images of the first draw. All see equally many target images at the
same length; rounds share it. The weights were trained on ImageNet, from which
Tiny-ImageNet is drawn: the trunk may know the source's images, in every arm.
"""

from ml_collections import ConfigDict

from configs import default

_GABOR = dict(bank='gabor', weights='', layers=(), bins=32)


def get_config(per_class='5'):
  c = default.get_config()
  c.target.per_class = int(per_class)
  c.model.weights = c.describe.weights = 'weights/squeezenet.safetensors'
  c.describe.bank, c.describe.layers = 'conv', ('conv1',)
  c.describe.bins, c.describe.batch = 100, 64
  c.describe.resize = c.describe.crop = 64
  # About a tenth of 35,000 images at 5 x 89 target images.
  c.budget.initial, c.budget.maximum = 30, 510

  c.model.trunk = 'squeezenet_v1_0'
  c.train.resize, c.train.crop = 72, 64
  c.train.micro_batches = 1
  c.train.target_batch = c.train.source_batch = 32
  c.train.checkpoint_every = 1000  # a run takes a minute
  c.rounds, c.fusion = 1, False
  c.suspects.neighbours = 0  # labels are not what is compared
  c.optim.schedule, c.optim.warmup = 'cosine', 5
  c.evaluate.batch = 256

  c.seeds = 5
  c.tune.folds = 2
  c.tune.steps = (150, 300)
  c.tune.learning_rates = (0.003, 0.01)
  arms = dict(
    fine_tuning=dict(title='Fine-tuning', set=dict(selection='none')),
    l2_sp=dict(
      title='L2-SP',
      set=dict(selection='none', optim=dict(to_start=True, weight_decay=0.01)),
    ),
    all=dict(title='Joint, all source images', set=dict(selection='all')),
    random=dict(
      title='Joint, random source images', set=dict(selection='random')
    ),
    one_round=dict(title='Selective, conv bank, no rounds'),
    gabor=dict(
      title='Selective, Gabor bank, no rounds', set=dict(describe=_GABOR)
    ),
    selective=dict(
      title='Selective, conv bank, three rounds', set=dict(rounds=3)
    ),
    fusion=dict(
      title='The same, rounds fused',
      average=('selective',),
      all_rounds=True,
    ),
  )
  c.arms, c.order = ConfigDict(arms), tuple(arms)
  return c
