"""Settings that make no sense are refused before anything is made of them."""

import functools
import math
import numbers
import operator

from sjft_jax import (
  describe,
  evaluate,
  optim,
  paths,
  recipes,
  screen,
  selection,
)
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from sjft_jax.models import conv_bank, resnet, trunks, two_heads

CHOICES = {
  'target.kind': tuple(datasets.OPENERS),
  'describe.bank': tuple(describe.BANKS),
  'describe.binning': tuple(describe.BINNINGS),
  'describe.activation': ('before', 'after'),
  'search.operands': ('auto', *screen.OPERANDS),
  'selection': tuple(selection.RULES),
  'model.trunk': tuple(trunks.TRUNKS),
  'model.stem': tuple(resnet.STEMS),
  'model.variant': tuple(resnet.VARIANTS),
  'model.averages': tuple(two_heads.AVERAGES),
  'model.statistics': tuple(trunks.STATISTICS),
  'model.dtype': ('float32', 'bfloat16'),
  'optim.rule': tuple(optim.RULES),
  'optim.schedule': tuple(recipes.SCHEDULES),
  'hardness.views': tuple(evaluate.VIEWS),
  'evaluate.views': tuple(evaluate.VIEWS),
}
AT_LEAST = {
  -1: ('search.rank',),
  0: (
    'seed', 'threads', 'seeds', 'rounds', 'max_bad_fraction',
    'target.per_class', 'target.held_out', 'target.fold',
    'guard.screen', 'guard.confirm',
    'describe.resize', 'describe.crop',
    'describe.fine_bins',
    'hardness.add_wrong', 'hardness.add_unsure', 'hardness.min_entropy',
    'pretrain.seed', 'pretrain.steps', 'pretrain.warmup',
    'pretrain.weight_decay',
    'budget.images', 'budget.depth', 'distill.steps',
    'train.source_batch', 'train.target_weight', 'train.source_weight',
    'train.checkpoint_every', 'optim.momentum', 'optim.weight_decay',
    'model.momentum', 'train.most_per_label', 'train.label_smoothing',
    'optim.warmup', 'suspects.neighbours',
  ),
  1: (
    'describe.batch', 'budget.initial', 'budget.maximum',
    'budget.least_per_class', 'pretrain.batch', 'train.steps',
    'train.micro_batches', 'train.target_batch', 'train.resize',
    'evaluate.batch', 'search.target_parts',
  ),
  2: ('describe.bins',),
  # The stem's pool needs two pixels of half the size.
  3: ('train.crop',),
}  # fmt: skip
# Largest value, or the setting that holds it.
AT_MOST = {
  # What random generators take.
  'seed': 2**32 - 1,
  'pretrain.seed': 2**32 - 1,
  # A round adds at most as much again, in int32.
  'budget.maximum': 2**30,
  'max_bad_fraction': 1,
  'guard.screen': 1,
  'guard.confirm': 1,
  'budget.initial': 'budget.maximum',
  'train.crop': 'train.resize',
}
BELOW_ONE = (
  'target.held_out',
  'optim.momentum',
  'model.momentum',
  'train.label_smoothing',
)
FILES = ('model.weights', 'describe.weights', 'describe.edges')
# Caches are written in pieces, or by libraries that know disks alone.
ON_DISK = ('guard.cache', 'search.cache')
# Entropy that no image reaches: none is unsure.
UNBOUNDED = ('hardness.min_entropy',)
ABOVE_ZERO = (
  'optim.learning_rate',
  'optim.factor',
  'pretrain.learning_rate',
  'distill.temperature',
)


def check(c):
  """Refuses settings that could only fail, perhaps after hours.

  Args:
    c: every setting of one run.

  Raises:
    UserError: in one line that names every setting out of its range.
  """
  wrong = []

  # "not a >= b" rather than "a < b": NaN is out of every range.
  def need(good, name, what):
    if not good:
      wrong.append(f'{name} must be {what}, not {_value(c, name)!r}')

  for name, choices in CHOICES.items():
    need(_value(c, name) in choices, name, f'one of {", ".join(choices)}')
  for least, names in AT_LEAST.items():
    for name in names:
      value = _value(c, name)
      good = _is_finite(value) or name in UNBOUNDED
      need(good and value >= least, name, f'at least {least}')
  for name, bound in AT_MOST.items():
    most, of = bound, ''
    if isinstance(bound, str):
      most, of = _value(c, bound), f' ({bound})'
    need(_value(c, name) <= most, name, f'at most {most}{of}')
  for name in BELOW_ONE:
    need(_value(c, name) < 1, name, 'below 1')
  for name in ABOVE_ZERO:
    need(_is_above_zero(_value(c, name)), name, 'above 0')
  width = c.model.width
  wide = _is_finite(width) and round(64 * width) >= 1
  need(wide, 'model.width', 'at least 0.01')
  if c.model.trunk in conv_bank.NETWORKS:
    plain = f'1.0, since {c.model.trunk} has one width'
    need(c.model.width == 1, 'model.width', plain)
  need(
    c.target.folds == 0 or c.target.folds >= 2,
    'target.folds',
    '0 or at least 2',
  )
  if c.target.folds:
    need(
      c.target.fold < c.target.folds,
      'target.fold',
      f'below {c.target.folds} (target.folds)',
    )
  if c.budget.depth:
    need(
      c.budget.depth >= c.budget.maximum,
      'budget.depth',
      f'0 or at least {c.budget.maximum} (budget.maximum)',
    )
  need(
    not c.budget.images or selection.RULES[c.selection].counted,
    'budget.images',
    f'0 for selection={c.selection}, which takes what it takes',
  )
  if c.describe.bank == 'conv':
    need(
      c.describe.weights,
      'describe.weights',
      'a file written by sjft_jax.convert',
    )
  if c.selection == 'features':
    need(
      c.model.weights,
      'model.weights',
      'the trunk whose feature selects (selection=features)',
    )
  if c.describe.fine_bins:
    need(
      c.describe.fine_bins >= c.describe.bins,
      'describe.fine_bins',
      f'0 or at least {c.describe.bins} (describe.bins)',
    )
    need(
      c.search.cache,
      'search.cache',
      'a directory that keeps the source, for describe.fine_bins',
    )
  if c.pretrain.steps:
    need(
      c.pretrain.warmup < c.pretrain.steps,
      'pretrain.warmup',
      f'below {c.pretrain.steps} (pretrain.steps)',
    )
  need(
    all(isinstance(n, int) and n >= 0 for n in c.optim.boundaries),
    'optim.boundaries',
    'numbers of updates, as (40, 50)',
  )
  for name in ('optim.round_factors', 'evaluate.scales'):
    factors = _value(c, name)
    good = factors and all(map(_is_above_zero, factors))
    need(good, name, 'factors above 0, as (1.0, 0.5)')
  need(
    all(isinstance(name, str) for name in c.optim.frozen),
    'optim.frozen',
    "names of parameters, as ('trunk/res2*',)",
  )
  if c.optim.schedule == 'cosine':
    need(
      c.optim.warmup < c.train.steps,
      'optim.warmup',
      f'below {c.train.steps} (train.steps)',
    )
  else:
    need(
      not c.optim.warmup,
      'optim.warmup',
      '0 with optim.schedule=step, which has none',
    )
  if c.distill.steps:
    need(c.rounds != 1, 'rounds', '0 or at least 2, for distill.steps')
    if c.optim.schedule == 'cosine':
      need(
        c.optim.warmup < c.distill.steps,
        'optim.warmup',
        f'below {c.distill.steps} (distill.steps)',
      )
  need(
    c.selection == 'none' or c.train.source_batch in (0, c.train.target_batch),
    'train.source_batch',
    f'{c.train.target_batch} (train.target_batch), since every target image '
    'is paired with one source image',
  )
  for name in FILES:
    paths.path(_value(c, name))
  for name in ON_DISK:
    paths.on_disk(_value(c, name), f'{name}, a cache,')
  if wrong:
    raise UserError(f'{"; ".join(wrong)}.')


def _is_finite(value) -> bool:
  return isinstance(value, numbers.Integral) or (
    isinstance(value, numbers.Real) and math.isfinite(value)
  )


def _is_above_zero(value) -> bool:
  return _is_finite(value) and value > 0


def _value(c, name):
  return functools.reduce(operator.getitem, name.split('.'), c)
