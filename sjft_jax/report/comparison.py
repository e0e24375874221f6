"""What is said of the arms of a comparison: table, verdicts, plots."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from sjft_jax.report import plots, record, wording


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
  text = wording.points(arm['difference_mean'])
  if interval := arm.get('difference_interval'):
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
  note = 'Mean over the seeds; band: one standard deviation.'
  for name, title, unit, value in (
    ('arm-accuracy', 'Accuracy over the rounds', 'per cent', _test_percent),
    ('arm-k', 'Mean K', 'neighbours', _mean_k),
  ):
    lines = []
    for arm, runs in results.items():
      values = {}
      for r in (r for run in runs for r in run['rounds']):
        values.setdefault(r['round'], []).append(value(r))
      mean = np.array([np.mean(v) for v in values.values()])
      std = np.array([np.std(v, ddof=len(v) > 1) for v in values.values()])
      lines.append(
        plots.Line(arms[arm]['title'], [*values], mean, mean - std, mean + std)
      )
    yield plots.curves(name, title, 'round', unit, lines, note=note)

  lines = []
  for arm, found in directories.items():
    # The first run alone has pretrained; its updates are not the arm's.
    series = [
      record.losses(path / 'metrics.jsonl', pretraining=False)[0]
      for path in found
    ]
    series = [points.get('target_loss') or [] for points in series]
    # Seeds of a killed comparison may be of different lengths.
    shortest = min(map(len, series))
    if shortest:
      mean = np.mean([points[:shortest] for points in series], axis=0)
      lines.append(plots.Line(arms[arm]['title'], *plots.thin(mean, 60)))
  title, note = 'Loss on the target', 'Mean over the seeds.'
  yield plots.curves('arm-loss', title, 'updates', 'nats', lines, note=note)


def tuning_table(tuning, arms) -> list[list[str]]:
  """Head and rows: what every arm was tried with, and what was chosen."""
  head = ['Arm', 'Learning rate', 'Updates', 'K0', 'Bank', 'Source weight']
  rows = [[*head, 'Right on folds, %', 'Chosen']]
  for arm, found in tuning.items():
    for tried in found['tried']:
      chosen = all(tried.get(k) == v for k, v in found['chosen'].items())
      weight = tried.get('source_weight')
      rows.append(
        [
          arms[arm]['title'],
          f'{tried["learning_rate"]:g}',
          wording.count(tried['steps']),
          wording.count(tried.get('initial')),
          tried.get('bank', '-'),
          '-' if weight is None else f'{weight:g}',
          wording.percent(np.mean(tried['mean_class_accuracy'])),
          'yes' if chosen else '-',
        ]
      )
  return rows


def _test_percent(r) -> float:
  return 100 * r['mean_class_accuracy']


def _mean_k(r) -> float:
  """Mean K of a round, NaN where nothing is borrowed."""
  return r['mean_k'] if record.borrowed(r) else math.nan
