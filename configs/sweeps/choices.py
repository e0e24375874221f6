"""What a chosen K0 and bank and the distilled network are worth, on digits.

  python -m sjft_jax.sweep --config=configs/sweeps/choices.py --workdir=DIR

Ten labelled scans a class, beside 2,000 MNIST digits and 500 patches of
photographs, on which the network was pretrained for a short time. The first arm
has three rounds at a K0 and a Gabor bank that nobody has chosen; it is compared
with fine-tuning, with itself after K0 and bank were chosen on five folds of its
training images, with its rounds fused, and with the one network that these were
distilled into. Each seed tests on what its draw has left, among it images that
the choices were made by (see sjft_jax.tuning). Minutes on a laptop; real images
that come inside pip packages.
"""

from ml_collections import ConfigDict

from configs import default, demo


def get_config():
  c = demo.get_config()
  quotas = dict(mnist=2000, photographs=500)
  c.source = ConfigDict(
    {
      name: default.source(kind='packaged', name=name, quota=quota)
      for name, quota in quotas.items()
    }
  )
  c.target.per_class = 10
  c.pretrain.steps = 200
  c.suspects.neighbours = 0
  c.budget.initial, c.budget.maximum = 20, 200
  c.rounds, c.train.steps, c.optim.schedule = 3, 40, 'cosine'
  c.distill.steps = 40
  arms = dict(
    selective=dict(title='Selective, K0 = 20, 32 bins'),
    fine_tuning=dict(
      title='Fine-tuning',
      set=dict(selection='none', distill=dict(steps=0)),
    ),
    chosen=dict(
      title='Selective, K0 and bank chosen',
      set=dict(distill=dict(steps=0)),
      tune=dict(
        folds=5,
        steps=(c.rounds * c.train.steps,),
        learning_rates=(c.optim.learning_rate,),
        initial=(20, 5, 60),
        banks=dict(bins32=dict(bins=32), bins8=dict(bins=8)),
      ),
    ),
    fusion=dict(
      title='The first, rounds fused', average=('selective',), all_rounds=True
    ),
    distilled=dict(
      title='The first, distilled', average=('selective',), distilled=True
    ),
  )
  c.arms, c.order = ConfigDict(arms), tuple(arms)
  return c
