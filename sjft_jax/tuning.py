"""What is chosen for every arm by one rule, on training folds alone.

Learning rate and length, and where it is asked for K0, the bank and the weight
of the source. The training images of seed 0 are cut into folds; with every
choice an arm is trained without a fold and asked about it. The one that is
right most often, over the folds, is taken for all seeds; but where borrowing
can be given up, it has to beat the best that does not borrow by more than the
folds differ. The test images of seed 0 are never opened. Where a seed tests on
what its own draw has left (target.per_class or held_out without test images of
their own), most training images of seed 0 are test images of other seeds: there
the choices have seen their labels.
"""

import copy
import numbers

import numpy as np
from ml_collections import ConfigDict

from sjft_jax import intervals, rounds, selection, settings
from sjft_jax.errors import UserError

# Whether borrowing gains is an interval over the folds. Of fewer it is so wide
# that borrowing would never be chosen.
_FOLDS_OF_A_MARGIN = 5
# Digits of a mean over the folds. Folds that are right as often, in another
# order, have means that differ in the last bit.
_DIGITS = 9


def room(c, arm):
  """What may be chosen for an arm: `tune`, with what the arm says of it.

  Raises:
    UserError: if the arm names what there is not in `tune`.
  """
  values, own = copy.deepcopy(c.tune), c.arms[arm].get('tune', {})
  _update(values, own, f'arms.{arm}.tune')
  return values


def _update(values, new, setting):
  """Puts new values over those that are there, under their own names."""
  if not isinstance(new, dict | ConfigDict):
    raise UserError(
      f'{setting} needs settings and their values, as {{name: value}}; came '
      f'{new!r}.'
    )
  unknown = sorted(set(new) - set(values))
  if unknown:
    raise UserError(
      f'{setting} names {", ".join(unknown)}; there are {", ".join(values)}.'
    )
  try:
    # Names of banks are new.
    with values.unlocked():
      values.update(new)
  except TypeError as error:
    raise UserError(f'{setting}: {error}') from error


def check(c, arm, own):
  """Refuses a tuning that makes no sense.

  Args:
    c: every setting of the comparison.
    arm: its name.
    own: the settings of a run of the arm.

  Raises:
    UserError: in one line.
  """
  tune_ = room(c, arm)
  if not tune_.folds:
    return
  _check_kinds(c, arm, tune_)
  if own.target.folds:
    raise UserError(
      'tune cuts folds of its own of the training images, and needs '
      f'target.folds=0; came {own.target.folds}.'
    )
  values = _values(c, arm, own)
  if tune_.folds < 2 or not {'learning_rate', 'steps'} <= set(values):
    raise UserError(
      'tune needs folds >= 2 and values of learning_rates and steps; came '
      f'{tune_.folds}, {tune_.learning_rates}, {tune_.steps}.'
    )
  if own.optim.schedule != 'cosine':
    raise UserError(
      'tune.steps needs optim.schedule=cosine, which ends with a round whatever'
      f' its length; came {own.optim.schedule}.'
    )
  for steps in values['steps']:
    if steps % own.rounds:
      raise UserError(
        f'tune.steps needs lengths that the {own.rounds} rounds of arms.{arm} '
        f'share evenly; came {steps}.'
      )
  weights = list(tune_.source_weights)
  falling = sorted(set(weights), reverse=True)
  # NaN is in no order.
  if weights and not (weights == falling and weights[0] > 0 <= weights[-1]):
    raise UserError(
      'tune.source_weights must fall from above 0, to 0 at most, as '
      f'(1.0, 0.3, 0.1, 0.0); came {tuple(weights)}.'
    )
  if weights and not weights[-1] and tune_.folds < _FOLDS_OF_A_MARGIN:
    raise UserError(
      'tune.source_weights that end with 0 need tune.folds >= '
      f'{_FOLDS_OF_A_MARGIN}, to tell a gain from chance; came {tune_.folds}.'
    )
  for name in tune_.banks:
    # They name directories.
    if not name.replace('-', '_').isidentifier():
      raise UserError(
        f'tune.banks needs names of letters and digits; came {name!r}.'
      )
  first = {name: tried[0] for name, tried in values.items()}
  first['steps'] = min(values['steps'])
  for name, tried in values.items():
    for value in tried:
      trial = copy.deepcopy(own)
      apply(trial, tune_, **first | {name: value})
      settings.check(trial)


def _check_kinds(c, arm, tune_):
  """Refuses values that are no numbers: the first of them may run for hours."""

  def number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)

  def whole(value):
    return number(value) and isinstance(value, numbers.Integral)

  for name, good, needed in (
    ('learning_rates', number, 'numbers, as (0.003, 0.01)'),
    ('steps', whole, 'whole numbers of updates, as (100, 200)'),
    (
      'initial',
      lambda k: whole(k) and k > 0,
      'whole numbers of neighbours, as (10, 30)',
    ),
    ('source_weights', number, 'numbers, as (1.0, 0.3, 0.1, 0.0)'),
  ):
    if not all(map(good, tune_[name])):
      of = f'arms.{arm}.' * (name in c.arms[arm].get('tune', {}))
      came = tuple(tune_[name])
      raise UserError(f'{of}tune.{name} needs {needed}; came {came!r}.')


def tune(c, arm, own, workdir, mesh, done) -> dict:
  """Finds what is best for an arm.

  All rates are tried at the first length, then the other lengths at the best
  rate, then the other K0, the other banks and the lower weights of the source
  at the best so far: as many runs as there are values, less the first ones,
  for each fold. The weight 0 is fine-tuning without a source, for which rates
  and lengths are tried anew. What borrows is chosen only if its paired
  differences over the folds to the best that does not, by
  `intervals.bootstrap_t`, lie above 0: a source that does not help costs
  nothing then, since the arm is the very one that never had it.

  Args:
    c: every setting of the comparison.
    arm: its name.
    own: the settings of its run of seed 0.
    workdir: directory of the comparison; the runs are left in its `tuning`.
    mesh: the devices.
    done: directories of finished runs, to take over from; these are added.

  Returns:
    {'chosen': arguments of `apply`, 'tried': one row per choice, 'seconds': of
    all trials}, where a row holds the choice and the mean class accuracy of
    each fold. Among equal means the lower weight of the source is chosen, then
    the one tried first. With the weight 0, `gain` is the interval that decided:
    of the best that borrows, as if no other had been tried, and over folds that
    share most of their training images. It says less than an interval over
    seeds.
  """
  tune_, values, rows = room(c, arm), _values(c, arm, own), []
  seconds = []
  weights = values.pop('source_weight', ())

  def trial(choice):
    accuracies = []
    for fold in range(tune_.folds):
      name = f'{_name(arm, **choice)}-{fold}'
      print(f'== tuning {name}', flush=True)
      trial_c = copy.deepcopy(own)
      apply(trial_c, tune_, **choice)
      trial_c.target.folds, trial_c.target.fold = tune_.folds, fold
      directory = workdir / 'tuning' / name
      result = rounds.run(trial_c, directory, mesh, donors=done)
      done.append(directory)
      accuracies.append(result['mean_class_accuracy'])
      seconds.append(sum(result.get('seconds', {}).values()))
    rows.append((choice, accuracies))
    return rows[-1]

  def descend(choice, names):
    """Tries one setting after the other; returns the best choice."""
    mine = [trial(choice)]
    for name in names:
      choice, _ = _best(mine)
      mine += [trial(choice | {name: value}) for value in values[name][1:]]
    return _best(mine)[0]

  first = {name: tried[0] for name, tried in values.items()}
  weight = {'source_weight': weights[0]} if weights else {}
  choice = descend(first | weight, values)
  for weight in weights[1:]:
    if weight:
      trial(choice | {'source_weight': weight})
    else:
      plain = {name: first[name] for name in ('learning_rate', 'steps')}
      descend(plain | {'source_weight': weight}, plain)
  best, gain = chosen(rows)
  return gain | {
    'chosen': best,
    'tried': [
      choice | {'mean_class_accuracy': accuracies}
      for choice, accuracies in rows
    ],
    'seconds': round(sum(seconds), 2),
  }


def apply(
  c,
  tune_,
  *,
  steps,
  learning_rate,
  initial=None,
  bank=None,
  source_weight=None,
):
  """Sets what was chosen.

  Args:
    c: settings of one run, changed in place.
    tune_: from `room`.
    steps: updates of all rounds together.
    learning_rate: of the rounds.
    initial: K0; the cap on K follows in proportion, and the search goes deep
      enough for all that may be chosen, so that one serves them all.
    bank: name of a row of `tune_.banks`.
    source_weight: of its cross-entropy; 0 = no source.
  """
  c.train.steps = steps // c.rounds
  c.optim.learning_rate = learning_rate
  if initial is not None:
    caps = {
      k: round(c.budget.maximum * k / c.budget.initial) for k in tune_.initial
    }
    c.budget.depth = max(caps.values())
    c.budget.initial, c.budget.maximum = initial, caps[initial]
  if bank is not None:
    _update(c.describe, tune_.banks[bank], f'tune.banks.{bank}')
  if source_weight:
    c.train.source_weight = source_weight
  elif source_weight is not None:
    c.selection = 'none'


def is_open(c, arm, own) -> bool:
  """Whether there is anything to choose for an arm.

  Args:
    c: every setting of the comparison.
    arm: its name.
    own: the settings of its run of seed 0.
  """
  if not room(c, arm).folds:
    return False
  set_ = c.arms[arm].get('set', {})
  fixed = 'learning_rate' in set_.get('optim', {}) and 'steps' in set_.get(
    'train', {}
  )
  return not fixed or len(_values(c, arm, own)) > 2


def banks(c, arm, own) -> list:
  """The settings of an arm with each bank that is tried."""
  if not room(c, arm).folds:
    return []
  tried = []
  for name in _values(c, arm, own).get('bank', ()):
    trial = copy.deepcopy(own)
    _update(trial.describe, room(c, arm).banks[name], f'tune.banks.{name}')
    tried.append(trial)
  return tried


def _values(c, arm, own) -> dict:
  """What is tried of every setting; what an arm sets itself stays."""
  tune_, set_ = room(c, arm), c.arms[arm].get('set', {})
  values = {
    'learning_rate': tuple(tune_.learning_rates),
    'steps': tuple(tune_.steps),
  }
  if 'learning_rate' in set_.get('optim', {}):
    values['learning_rate'] = (own.optim.learning_rate,)
  if 'steps' in set_.get('train', {}):
    values['steps'] = (own.train.steps * own.rounds,)
  searched = selection.RULES[own.selection].searched
  if searched and 'initial' not in set_.get('budget', {}):
    values['initial'] = tuple(tune_.initial)
  if searched == 'descriptors' and 'describe' not in set_:
    values['bank'] = tuple(tune_.banks)
  weighed = 'source_weight' in set_.get('train', {})
  if own.selection != 'none' and not weighed:
    values['source_weight'] = tuple(tune_.source_weights)
  return {name: tried for name, tried in values.items() if tried}


def chosen(rows) -> tuple[dict, dict]:
  """The best choice, which borrows only if that gains.

  Args:
    rows: (choice, mean class accuracy of each fold) of all that was tried.

  Returns:
    (the choice, {'gain': interval} if one that was tried is not to borrow);
    see `tune`.
  """
  plain = [row for row in rows if row[0].get('source_weight') == 0]
  best, accuracies = _best([row for row in rows if row not in plain])
  if not plain:
    return best, {}
  without, others = _best(plain)
  low, high = intervals.bootstrap_t(np.subtract(accuracies, others))
  return best if low > 0 else without, {'gain': (low, high)}


def _best(rows) -> tuple[dict, list[float]]:
  """The row that was right most often; see `tune` for equal ones."""

  def worth(row):
    choice, accuracies = row
    mean = round(float(np.mean(accuracies)), _DIGITS)
    return mean, -choice.get('source_weight', 0)

  # The first of the largest.
  return max(rows, key=worth)


def _name(
  arm, *, steps, learning_rate, initial=None, bank=None, source_weight=None
):
  """Of a trial's directory, without the fold."""
  parts = [arm, str(steps), f'{learning_rate:g}']
  parts += [f'k{initial}'] * (initial is not None)
  parts += [bank] * (bank is not None)
  parts += [f'w{source_weight:g}'] if source_weight is not None else []
  return '-'.join(parts)
