"""Is a source that does not help given up? Digits beside photographs.

  python -m sjft_jax.sweep --config=configs/sweeps/unrelated.py --workdir=DIR
  python -m sjft_jax.sweep --config=configs/sweeps/unrelated.py:mnist \
      --workdir=DIR

Twenty labelled scans a class, beside patches of photographs, on which the
network was pretrained. The third arm chooses the weight of the source on five
folds of forty of its training images; if borrowing does not gain there, it is
the first arm. The second command has MNIST's digits in place of the
photographs: is a source kept that may help? Minutes on a laptop; real images
that come inside pip packages.
"""

from ml_collections import ConfigDict

from configs import default, demo


def get_config(source='photographs'):
  c = demo.get_config()
  c.source = ConfigDict(
    {source: default.source(kind='packaged', name=source, quota=1744)}
  )
  c.target.per_class = 20
  c.pretrain.steps = 200
  c.rounds, c.fusion = 1, False
  c.suspects.neighbours = 0
  c.train.steps, c.optim.schedule = 100, 'cosine'
  arms = dict(
    fine_tuning=dict(title='Fine-tuning', set=dict(selection='none')),
    joint=dict(title='Joint, weight 1'),
    falling=dict(
      title='Joint, weight chosen',
      tune=dict(
        folds=5,
        steps=(c.train.steps,),
        learning_rates=(c.optim.learning_rate,),
        source_weights=(1.0, 0.3, 0.1, 0.0),
      ),
    ),
  )
  c.arms, c.order = ConfigDict(arms), tuple(arms)
  return c
