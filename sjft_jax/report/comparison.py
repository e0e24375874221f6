"""What is said of the arms of a comparison: table, verdicts, plots."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from sjft_jax import selection
from sjft_jax.report import plots, record, wording

# Settings whose tuning may end where it should have gone on. The weight of the
# source falls from what it is, and to none where that may be chosen.
_ENDS = ('learning_rate', 'steps', 'initial')
_BAND = 'Mean over the seeds; band: one standard deviation.'
_ENDED = 'A seed that ended early, since no K changed, keeps its last value.'


def ordered(arms: Mapping) -> dict:
  """The arms with the one that the others are compared to in front."""
  named = (arm.get('difference_to') for arm in arms.values())
  reference = next(filter(None, named), None)
  return dict(sorted(arms.items(), key=lambda item: item[0] != reference))


def source_names(arms) -> list[str]:
  """Every source that some arm borrowed from, in order of appearance."""
  lists = (arm.get('images_selected') or {} for arm in arms.values())
  return list(dict.fromkeys(name for names in lists for name in names))


def table(arms) -> list[list[str]]:
  """Head and rows of the table of arms, in plain ASCII."""
  sources = source_names(arms)
  fused = any(
    arm.get('fused') and arm['fused'] != arm['mean_class_accuracy']
    for arm in arms.values()
  )
  reference = next(iter(arms.values()))['title']
  head = ['Arm', 'Mean class accuracy, %', *['Rounds fused, %'] * fused]
  head += [f'Points against {reference}', 'Verdict']
  published = any(arm.get('published') for arm in arms.values())
  head += ['Published, %'] * published
  rows = [[*head, *(f'Images of {name}' for name in sources)]]
  for i, arm in enumerate(arms.values()):
    several = len(arm['mean_class_accuracy']) > 1
    spread = f' +- {wording.percent(arm["std"])}' if several else ''
    row = [arm['title'], wording.percent(arm['mean']) + spread]
    if fused:
      row.append(
        wording.percent(np.mean(arm['fused']) if arm.get('fused') else None)
      )
    row += [_difference(arm), _verdict(arm)] if i else ['-', '-']
    if published:
      row.append(f'{arm["published"]:.1f}' if arm.get('published') else '-')
    borrowed = arm.get('images_selected') or {}
    rows.append(
      [*row, *(wording.count(borrowed.get(name)) for name in sources)]
    )
  return rows


def _difference(arm) -> str:
  return _with_interval(arm['difference_mean'], arm.get('difference_interval'))


def _with_interval(mean, interval) -> str:
  text = wording.points(mean)
  if interval:
    text += ' [{}, {}]'.format(*map(wording.points, interval))
  return text


def _verdict(arm) -> str:
  if not (interval := arm.get('difference_interval')):
    return 'too few seeds'
  low, high = interval
  return 'gain' if low > 0 else 'loss' if high < 0 else 'no gain shown'


def sentence(arms, name) -> str:
  """What one arm reached, and how that compares with the first."""
  arm, reference = arms[name], next(iter(arms.values()))
  seeds = len(arm['mean_class_accuracy'])
  drawn = f'over {seeds} seeds' if seeds > 1 else 'with one seed'
  mean = wording.percent(arm['mean'])
  text = f'{arm["title"]}: {mean} % mean class accuracy {drawn}'
  if arm is reference:
    return f'{text}.'
  text += f', {wording.points(arm["difference_mean"])} points against '
  text += f'{reference["title"]}'
  if interval := arm.get('difference_interval'):
    text += ' (95 % interval {} to {})'.format(*map(wording.points, interval))
  return f'{text}.' if _verdict(arm) == 'gain' else f'{text}: {_verdict(arm)}.'


def figures(workdir, arms) -> Iterator[dict | None]:
  """Accuracies and differences of the arms, and their curves over rounds."""
  accuracy, difference = [], []
  for i, arm in enumerate(arms.values()):
    values = 100 * np.asarray(arm['mean_class_accuracy'], float)
    mean, std = 100 * arm['mean'], 100 * record.number(arm.get('std'))
    dots = plots.Dots(arm['title'], values, mean, mean - std, mean + std)
    accuracy.append(dots)
    if i:
      values = 100 * np.asarray(arm['difference'], float)
      low, high = arm.get('difference_interval') or (math.nan, math.nan)
      mean = 100 * arm['difference_mean']
      dots = plots.Dots(arm['title'], values, mean, 100 * low, 100 * high)
      difference.append(dots)
  title = 'Mean class accuracy'
  note = 'A circle is a seed; the bar, their mean and one standard deviation.'
  yield plots.dots('arms', title, 'per cent', accuracy, note)
  title = f'Paired difference to {next(iter(arms.values()))["title"]}'
  note = 'A circle is a seed; the bar, their mean and its 95 % interval.'
  yield plots.dots('difference', title, 'points', difference, note, first=1)

  # An arm that averages others has no runs.
  directories = {
    name: found
    for name in arms
    if (found := record.run_directories(workdir, name))
  }
  results = {
    name: [record.read(path / 'results.json') for path in found]
    for name, found in directories.items()
  }
  settings = {
    name: record.read(found[0] / 'config.json').get('settings', {})
    for name, found in directories.items()
  }
  note = _BAND
  for runs in results.values():
    if len({len(run['rounds']) for run in runs}) > 1:
      note = f'{_BAND} {_ENDED}'
  by_images = any(
    selection.uses_k(own) and own.get('budget', {}).get('images')
    for own in settings.values()
  )
  for name, title, unit, value, more in (
    ('arm-accuracy', 'Accuracy over the rounds', 'per cent', _test_percent, ''),
    ('arm-k', 'Mean K', 'neighbours', _mean_k, plots.PROPORTION * by_images),
  ):
    lines = []
    for arm, runs in results.items():
      x, value_sm = _by_round(runs, value, settings[arm])
      mean = value_sm.mean(axis=0)
      std = value_sm.std(axis=0, ddof=len(runs) > 1)
      lines.append(
        plots.Line(arms[arm]['title'], x, mean, mean - std, mean + std)
      )
    yield plots.curves(name, title, 'round', unit, lines, note=note + more)

  lines, note = [], 'Mean over the seeds.'
  for arm, found in directories.items():
    # The first run alone has pretrained; its updates are not the arm's.
    series = [
      record.losses(path / 'metrics.jsonl', pretraining=False)[0]
      for path in found
    ]
    series = [points.get('target_loss') or [] for points in series]
    # A seed may have ended early, since no K changed.
    shortest = min(map(len, series))
    if shortest < max(map(len, series)):
      note = 'Mean over the seeds, as far as all seeds of an arm go.'
    if shortest:
      mean = np.mean([points[:shortest] for points in series], axis=0)
      lines.append(plots.Line(arms[arm]['title'], *plots.thin(mean, 60)))
  title = 'Loss on the target'
  yield plots.curves('arm-loss', title, 'updates', 'nats', lines, note=note)


def tuning_table(tuning, arms) -> list[list[str]]:
  """Head and rows: what every arm was tried with, and what was chosen.

  A choice at the end of what was tried is said to be one, in its cell and in
  the last. Beside the best with the source stands what it gains on the best
  without, which decided about borrowing: points, and `gain` of `tuning.tune`.
  """
  head = ['Arm', 'Learning rate', 'Updates', 'K0', 'Bank', 'Source weight']
  head += ['Right on folds, %', 'Points against the best without a source']
  rows = [[*head, 'Chosen']]
  for arm, found in tuning.items():
    borrowing, gain = _gain(found)
    for tried in found['tried']:
      chosen = all(tried.get(k) == v for k, v in found['chosen'].items())
      ends = {name: end for name in _ENDS if (end := _end(found, name))}
      ends = ends if chosen else {}
      weight = tried.get('source_weight')
      rows.append(
        [
          arms[arm]['title'],
          f'{tried["learning_rate"]:g}' + ends.get('learning_rate', ''),
          wording.count(tried['steps']) + ends.get('steps', ''),
          wording.count(tried.get('initial')) + ends.get('initial', ''),
          tried.get('bank', '-'),
          '-' if weight is None else f'{weight:g}',
          wording.percent(np.mean(tried['mean_class_accuracy'])),
          gain if tried is borrowing else '-',
          'yes, at an end' if ends else 'yes' if chosen else '-',
        ]
      )
  return rows


def _end(found, name) -> str:
  """What is said of a choice beyond which nothing was tried."""
  tried = {row[name] for row in found['tried'] if name in row}
  if len(tried) < 2 or name not in found['chosen']:
    return ''
  chosen = found['chosen'][name]
  largest, smallest = chosen == max(tried), chosen == min(tried)
  if not largest and not smallest:
    return ''
  return f', the {"largest" if largest else "smallest"} tried'


def _gain(found) -> tuple[dict | None, str]:
  """The best that borrows, and what it gains on the best that does not."""

  def worth(row):
    # As tuning chooses, of equal ones the lower weight.
    return round(np.mean(row['mean_class_accuracy']), 9), -row['source_weight']

  if not found.get('gain'):
    return None, '-'
  rows = found['tried']
  borrowing = [row for row in rows if row['source_weight']]
  best = max(borrowing, key=worth)
  without = max((row for row in rows if not row['source_weight']), key=worth)
  mean = np.mean(best['mean_class_accuracy']) - np.mean(
    without['mean_class_accuracy']
  )
  text = _with_interval(mean, found['gain'])
  return best, f'{text}, best of {len(borrowing)}'


def _by_round(runs, value, settings) -> tuple[list[int], np.ndarray]:
  """Rounds, and a value of each by seed, float [seeds, rounds].

  A seed that ended early keeps its last value: a mean over fewer seeds would
  rise or fall by who is missing.
  """
  longest = max((run['rounds'] for run in runs), key=len)
  rows = []
  for run in runs:
    mine = [value(r, settings) for r in run['rounds']]
    rows.append(mine + mine[-1:] * (len(longest) - len(mine)))
  return [r['round'] for r in longest], np.array(rows, float)


def _test_percent(r, settings) -> float:
  del settings
  return 100 * r['mean_class_accuracy']


def _mean_k(r, settings) -> float:
  """Mean K of a round, NaN where it decides nothing."""
  shown = record.borrowed(r) and selection.uses_k(settings)
  return r['mean_k'] if shown else math.nan
