"""Does an unrelated source hurt, and is it dropped? Digits beside photographs.

  python -m sjft_jax.sweep --config=configs/sweeps/unrelated.py --workdir=DIR

Five labelled scans a class, beside patches of photographs, on which the network
was pretrained. The third arm chooses the weight of the source on folds of its
training images. Minutes on a laptop; real images that come inside pip packages.
"""

from ml_collections import ConfigDict

from configs import default, demo


def get_config():
  c = demo.get_config()
  c.source = ConfigDict(
    dict(photographs=default.source(kind='packaged', name='photographs'))
  )
  c.pretrain.steps = 200
  c.rounds, c.fusion = 1, False
  c.suspects.neighbours = 0
  c.optim.schedule = 'cosine'
  c.tune.folds, c.tune.steps, c.tune.learning_rates = 2, (120,), (0.01,)
  arms = dict(
    fine_tuning=dict(title='Fine-tuning', set=dict(selection='none')),
    joint=dict(title='Joint, weight 1'),
    falling=dict(
      title='Joint, weight chosen',
      tune=dict(source_weights=(1.0, 0.3, 0.1, 0.0)),
    ),
  )
  c.arms, c.order = ConfigDict(arms), tuple(arms)
  return c
