"""MIT Indoor 67, with ImageNet, Places 205 or both as source: K0 = 100.

  python -m sjft_jax.sweep --config=configs/paper/indoor.py --workdir=DIR
  python -m sjft_jax.main --config=configs/paper/indoor.py:places \
      --workdir=DIR

Published mean class accuracy, in per cent, by row:

  fine_tuning  81.7    places     85.8
  imagenet     82.8    selective  85.5 (from both)
                       pair       86.9 (average of places and selective)

The other rows, without a published number, borrow from both, too. Both sources
share one classifier here, in which their classes stand side by side.
"""

from configs.paper import rows

PUBLISHED = dict(
  fine_tuning=81.7, imagenet=82.8, places=85.8, selective=85.5, pair=86.9
)  # fmt: skip
SOURCES = ('imagenet2012', 'places205')
ROWS = dict(
  imagenet=(
    'Selective, from ImageNet',
    dict(source=dict(places205=dict(use=False))),
  ),
  places=(
    'Selective, from Places',
    dict(source=dict(imagenet2012=dict(use=False))),
  ),
  selective=('Selective, from both', {}),
)
PAIR = ('Average of Places and both', ('places', 'selective'), False)


def get_config(wanted=''):
  return rows.experiment(
    dict(name='indoor67', train='train', test='test'),
    100,
    PUBLISHED,
    wanted,
    sources=SOURCES,
    more=ROWS,
    average={'pair': PAIR},
  )
