"""The rows that the paper's tables share, over configs/default.py.

A target's file names its data, K0 and published numbers, and takes its rows
from here. Data sets are looked for in data/ as `python -m sjft_jax.prepare`
leaves them, weights in weights/ as `python -m sjft_jax.convert` does:

  weights/resnet152.safetensors  the authors', see docs/weights.md; for
                                 torchvision's add --config.model.variant=v1.5
  weights/alexnet.safetensors    BVLC's AlexNet, for the descriptors

All arms see equally many updates: K stays as it is in those without rounds.
"""

from ml_collections import ConfigDict

from configs import default

_NO_ROUNDS = dict(hardness=dict(add_wrong=0.0, add_unsure=0.0))
_SCRATCH = dict(model=dict(weights=''))
# name -> (title, settings); the first is what the others are compared with.
ROWS = dict(
  fine_tuning=('Fine-tuning without a source', dict(selection='none')),
  l2_sp=(
    'L2-SP',
    dict(selection='none', optim=dict(to_start=True, weight_decay=0.01)),
  ),
  scratch=('From scratch, target only', dict(selection='none', **_SCRATCH)),
  selective_scratch=('Selective joint, from scratch', _SCRATCH),
  all=('Joint, all source images', dict(selection='all')),
  random=('Joint, random source images', dict(selection='random')),
  no_rounds=('Selective, no hard-sample rounds', _NO_ROUNDS),
  gabor=(
    'Selective, Gabor bank',
    dict(describe=dict(bank='gabor', weights='', layers=(), bins=32)),
  ),
  conv1_5=(
    'Selective, bank of conv1-5',
    dict(describe=dict(layers=tuple(f'conv{i}' for i in range(1, 6)))),
  ),
  conv4_5=(
    'Selective, bank of conv4-5',
    dict(describe=dict(layers=('conv4', 'conv5'))),
  ),
  selective=('Selective joint fine-tuning (bank of conv1-2)', {}),
)
FUSION = ('With model fusion', ('selective',), True)


def experiment(
  target,
  initial,
  published,
  wanted='',
  *,
  sources=('imagenet2012',),
  more=None,
  average=None,
):
  """The settings of a target set's table, or of some of its rows.

  Args:
    target: fields of `target`; kind is tfds, dir is data.
    initial: K0.
    published: {row: per cent} of the paper.
    wanted: rows after the colon of --config, with commas; '' = all. One alone
      is one run, several are compared, the first with the others.
    sources: names of data sets.
    more: rows of this target, as ROWS.
    average: rows that average others, {name: (title, rows, all_rounds)}.

  Returns:
    ConfigDict.
  """
  c = default.get_config()
  c.target.kind, c.target.dir = 'tfds', 'data'
  c.target.update(target)
  c.source = ConfigDict(
    {n: default.source(kind='tfds', name=n, dir='data') for n in sources}
  )
  c.describe.bank, c.describe.weights = 'conv', 'weights/alexnet.safetensors'
  c.describe.layers, c.describe.bins = ('conv1', 'conv2'), 100
  # Five rounds of wrong answers come to 17 K0; the release stops at 5,000.
  c.budget.initial, c.budget.maximum = initial, min(17 * initial, 5000)
  c.model.weights = 'weights/resnet152.safetensors'
  c.evaluate.views = 'dense'
  rows = ROWS | (more or {})
  average = {'fusion': FUSION} | (average or {})
  names = [n for n in wanted.split(',') if n] or [*rows, *average]
  if len(names) == 1 and names[0] in rows:
    c.update(ConfigDict(rows[names[0]][1]))
    return c
  unknown = [name for name in names if name not in rows | average]
  if unknown:
    raise ValueError(f'Rows are {", ".join(rows | average)}, not {unknown[0]}.')
  c.order, c.seeds = tuple(names), 5
  for name in names:
    if name in rows:
      title, values = rows[name]
      arm = dict(title=title, set=values)
    else:
      title, averaged, all_rounds = average[name]
      arm = dict(title=title, average=averaged, all_rounds=all_rounds)
    if name in published:
      arm['published'] = published[name]
    c.arms[name] = ConfigDict(arm)
  return c
