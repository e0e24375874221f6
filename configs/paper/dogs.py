"""Stanford Dogs 120, 100 training images a class: K0 = 100.

  python -m sjft_jax.sweep --config=configs/paper/dogs.py --workdir=DIR
  python -m sjft_jax.main --config=configs/paper/dogs.py:selective \
      --workdir=DIR

Published mean class accuracy, in per cent, by row:

  scratch            53.8    random      85.5
  selective_scratch  83.4    no_rounds   88.3
  fine_tuning        80.4    gabor       87.5
  all                85.6    selective   90.2
                             fusion      90.3

Its images are ImageNet's: the guard withholds those of the test set from the
source, which the paper does not report to have done, and weights pretrained on
ImageNet have seen them. There is no validation set.
"""

from configs.paper import rows

PUBLISHED = dict(
  scratch=53.8, selective_scratch=83.4, fine_tuning=80.4, all=85.6,
  random=85.5, no_rounds=88.3, gabor=87.5, selective=90.2, fusion=90.3,
)  # fmt: skip


def get_config(wanted=''):
  target = dict(name='stanford_dogs', train='train', test='test')
  return rows.experiment(target, 100, PUBLISHED, wanted)
