"""One offline HTML page: numbers, curves, neighbour galleries.

Everything shown is read back from the files that a run leaves, and images by
their ids: the same files give the same bytes. What a run did not leave (no
source, no rounds) is left out of its page.
"""

import base64
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence

import cv2
import jinja2
import markupsafe
import matplotlib.axes
import matplotlib.figure
import matplotlib.style
import matplotlib.ticker
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sjft_jax import files, suspects
from sjft_jax.data import datasets, preprocess

# Ranks of the gallery. Source: Ge & Yu, CVPR 2017, figure 2.
RANKS = (1, 10, 20, 30, 40)
GALLERY_ROWS = 8
HARDEST = 9
# Images are shown about 130 CSS pixels wide.
THUMBNAIL = 160

# Colours that matplotlib writes, and the page's own that take their place, so
# that a plot follows the light or dark scheme of its page.
INK, RULE = '#010101', '#020202'
SERIES = tuple(f'#0303{i:02x}' for i in range(1, 7))
MARKERS = tuple(zip('os^DvP', '●■▲◆▼✚', strict=True))
THEME = {INK: 'currentColor', RULE: 'var(--rule)'} | {
  colour: f'var(--s{i})' for i, colour in enumerate(SERIES, 1)
}
STYLE = {
  'axes.edgecolor': RULE,
  'axes.labelcolor': INK,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'font.size': 10,
  'grid.color': RULE,
  'grid.linewidth': 0.8,
  'lines.linewidth': 1.8,
  'lines.markersize': 5.5,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'sjft_jax',
  'text.color': INK,
  'xtick.color': RULE,
  'xtick.labelcolor': INK,
  'ytick.color': RULE,
  'ytick.labelcolor': INK,
  'ytick.major.size': 0,
}


def write_run(
  workdir: pathlib.Path,
  target_train: datasets.Dataset,
  source: datasets.Dataset | None,
) -> pathlib.Path:
  """Writes the page of one run.

  Args:
    workdir: what the run left; `report/index.html` is written inside.
    target_train: the run's target training images.
    source: the pool it searched; not touched where nothing was selected.

  Returns:
    Path of the page.

  Raises:
    ValueError: if the run names images that the data sets do not hold.
  """
  workdir = pathlib.Path(workdir).resolve()
  context = _run(workdir, target_train, source)
  return _write(workdir, 'run.html.j2', context)


def write_comparison(
  workdir: pathlib.Path,
  example: pathlib.Path,
  target_train: datasets.Dataset,
  source: datasets.Dataset | None,
) -> pathlib.Path:
  """Writes the page of a comparison: its arms, then one run in detail.

  Args:
    workdir: what the comparison left; `report/index.html` is written inside.
    example: the run shown in detail, `workdir/runs/<arm>-<seed>`.
    target_train: the example's target training images.
    source: the pool the example searched.

  Returns:
    Path of the page.

  Raises:
    ValueError: if the example names images that the data sets do not hold.
  """
  workdir, example = (pathlib.Path(p).resolve() for p in (workdir, example))
  results = _read(workdir / 'results.json')
  arms = _ordered(results['arms'])
  arm, _, seed = example.name.rpartition('-')
  versions = {k: results[k] for k in ('device', 'versions') if k in results}
  context = _run(example, target_train, source) | {
    'name': workdir.name,
    'sentence': _typeset(_sentence(arms, arm)),
    'arms': _table(_arm_table(arms)),
    'arm_plots': list(filter(None, _arm_plots(workdir, arms))),
    'example': f'{arms[arm]["title"]}, seed {seed}',
    'seconds': _seconds(results),
    'settings': list(_flat(_read(workdir / 'config.json') | versions)),
  }
  return _write(workdir, 'comparison.html.j2', context)


def summary_table(results: Mapping) -> str:
  """The plain-text table of a comparison or of a run, and its seconds.

  Args:
    results: the value of `results.json`.

  Returns:
    Aligned lines. Of a comparison, per arm: mean class accuracy in per cent,
    paired difference to the first arm in points with its 95 % interval, and
    images borrowed from each source, means over the seeds; the last in a table
    of its own where 100 columns are not enough. Of a run, a line per round.
  """
  lines = []
  if 'arms' in results:
    arms = _ordered(results['arms'])
    table = _arm_table(arms)
    lines = _aligned(table)
    if max(map(len, lines)) > 100:
      cut = len(table[0]) - len(_source_names(arms))
      borrowed = [[row[0], *row[cut:]] for row in table]
      lines = [*_aligned([row[:cut] for row in table]), '', *_aligned(borrowed)]
  elif results.get('rounds'):
    lines = _aligned(_round_table(results['rounds']))
  stages = ', '.join(f'{name} {s}' for name, s, _ in _seconds(results))
  if stages:
    lines += ['', *textwrap.wrap(f'Seconds: {stages}', 100)]
  return '\n'.join(lines).lstrip('\n')


# ---------------------------------------------------------------- one run


@dataclasses.dataclass(frozen=True)
class _Neighbours:
  """Every pair of the table, by target and then by rank; int [pairs]."""

  target: np.ndarray  # position in the target set
  source: np.ndarray  # position in the pool
  rank: np.ndarray  # 0 = nearest
  distance: np.ndarray  # nats

  def of(self, target: int) -> slice:
    return slice(*np.searchsorted(self.target, [target, target + 1]))


def _run(workdir, target, source) -> dict:
  """What the page of a run shows."""
  results = _read(workdir / 'results.json')
  data = _read(workdir / 'data.json')
  config = _read(workdir / 'config.json')
  settings = config.get('settings', {})
  rounds = results.get('rounds', [])
  lent = rounds[-1] if rounds else {}
  folders = sorted(
    (workdir / 'rounds').glob('[0-9]*'), key=lambda path: int(path.name)
  )
  # K says nothing of a run that borrows nothing.
  budgets = [
    _budget(path, target)
    for path in (folder / 'budget.csv' for folder in folders)
    if path.exists() and _borrowed(lent)
  ]
  certificate = _read(workdir / 'selection' / 'certificate.json')
  context = {
    'name': workdir.name,
    'target': data.get('target'),
    'rounds': _table(_round_table(rounds)),
    'plots': list(filter(None, _run_plots(workdir, results, budgets))),
    'classes': [],
    'lending': [],
    'gallery': [],
    'hardest': None,
    'seconds': _seconds(results),
    'settings': list(_flat(config)),
    'certificate': list(_flat(certificate)),
    'bad': [row.values() for row in _csv(workdir / 'bad_images.csv')],
    'guard': _guard(workdir, results),
    'suspects': suspects.shown(workdir, results),
  }
  pairs = workdir / 'selection' / 'neighbours.parquet'
  # A random selection searches too, for its size, but draws from elsewhere.
  if settings.get('selection', 'neighbours') == 'neighbours' and pairs.exists():
    neighbours = _neighbours(pairs, target, source)
    initial = settings.get('budget', {}).get('initial', np.inf)
    k_q = budgets[-1][0] if budgets else np.full(len(target), initial)
    found, borrowing = _borrowing(neighbours, k_q, target, source)
    lent = found | lent
    context |= borrowing | {'gallery': _gallery(neighbours, target, source)}
  context['facts'] = _facts(results, data, lent)
  context['sources'] = _table(_source_table(lent, data))
  posteriors = [p for f in folders if (p := f / 'posteriors.npz').exists()]
  if posteriors:
    next_k_q = budgets[-1][1] if budgets else np.zeros(len(target), int)
    context['hardest'] = _hardest(posteriors[-1], next_k_q, target)
  return context


def _neighbours(path, target, source) -> _Neighbours:
  """The neighbour table with positions for ids."""
  table = pq.read_table(path)

  def positions(name, dataset):
    column = table[name].cast(pa.string())
    place = pc.index_in(column, value_set=pa.array(dataset.ids))
    if place.null_count:
      raise ValueError(
        f'{place.null_count} of {len(place)} values of {name} in {path} are '
        f'not among the {len(dataset)} ids of {dataset.name}.'
      )
    return place.to_numpy().astype(np.int64)

  columns = (
    positions('target_id', target),
    positions('source_id', source),
    table['rank'].to_numpy(),
    table['distance'].to_numpy(),
  )
  order = np.lexsort((columns[2], columns[0]))
  return _Neighbours(*(column[order] for column in columns))


def _budget(path, target) -> tuple[np.ndarray, np.ndarray]:
  """K in a round and in the next, int [q], by position in the target set."""
  place = {name: i for i, name in enumerate(target.ids.tolist())}
  k_q, next_k_q = np.zeros((2, len(target)), int)
  for row in _csv(path):
    i = place[row['target_id']]
    k_q[i] = int(row['k'])
    next_k_q[i] = int(row.get('next_k') or row['k'])
  return k_q, next_k_q


def _facts(results, data, lent) -> list[tuple[str, str]]:
  """The headline numbers: (value, label)."""
  rounds, facts = results.get('rounds', []), []
  if 'mean_class_accuracy' in results:
    rest = f' after {len(rounds)} rounds' if len(rounds) > 1 else ''
    value = _percent(results['mean_class_accuracy'])
    facts.append((f'{value} %', f'mean class accuracy{rest}'))
  if results.get('fused') and len(rounds) > 1:
    value = _percent(results['fused']['mean_class_accuracy'])
    facts.append((f'{value} %', 'mean class accuracy, rounds fused'))
  if 'target' in data:
    classes = len(data['target']['classes'])
    label = f'labelled target images of {classes} classes'
    facts.append((_count(data['target']['train']), label))
  if borrowed := _borrowed(lent):
    label = 'source images borrowed'
    if 'source' in data:
      label += f' of {_count(sum(data["source"]["images"].values()))}'
    facts.append((_count(borrowed), label))
  return facts


def _round_table(rounds) -> list[list[str]]:
  """Head and rows."""
  accuracies = ('mean_class_accuracy', 'accuracy', 'train_accuracy')
  head = ['Round', 'Mean class accuracy, %', 'Accuracy, %']
  table = [[*head, 'Training accuracy, %', 'Mean K', 'Images borrowed']]
  for r in rounds:
    borrowed = _borrowed(r)
    table.append(
      [
        str(r['round']),
        *(_percent(r.get(name)) for name in accuracies),
        _short(r['mean_k']) if borrowed and r.get('mean_k') else '-',
        _count(borrowed),
      ]
    )
  return table


def _source_table(lent, data) -> list[list[str]]:
  """Head and rows: how much of each source is borrowed."""
  held = data.get('source', {}).get('images', {})
  classes = lent.get('classes_selected') or {}
  head = ['Source', 'Images borrowed', 'Images in the pool', 'Share, %']
  table = [[*head, 'Classes borrowed from']]
  if _borrowed(lent):
    for name, images in lent['images_selected'].items():
      share = images / held[name] if held.get(name) else None
      counts = (images, held.get(name), classes.get(name))
      lent_text, held_text, class_text = map(_count, counts)
      table.append([name, lent_text, held_text, _percent(share), class_text])
  return table


def _borrowed(lent) -> int:
  """Source images of all sources in a row of `rounds`."""
  return sum((lent.get('images_selected') or {}).values())


def _borrowing(neighbours, k_q, target, source) -> tuple[dict, dict]:
  """What the first K neighbours are: counts by source; what the page shows."""
  used = neighbours.rank < k_q[neighbours.target]
  images = np.unique(neighbours.source[used])
  lent_c = np.bincount(source.labels[images], minlength=len(source.classes))
  held_c = np.bincount(source.labels, minlength=len(source.classes))
  pair_tc = np.zeros((len(target.classes), len(source.classes)), int)
  borrower = target.labels[neighbours.target[used]]
  np.add.at(pair_tc, (borrower, source.labels[neighbours.source[used]]), 1)

  groups = {}
  for c in _largest(lent_c, len(lent_c)):
    groups.setdefault(source.classes[c].partition(':')[0], []).append(c)
  counts = {
    'images_selected': {g: int(lent_c[c].sum()) for g, c in groups.items()},
    'classes_selected': {g: len(c) for g, c in groups.items()},
  }
  classes = [
    (
      group,
      [
        (
          source.classes[c].partition(':')[2],
          f'{_count(lent_c[c])} of {_count(held_c[c])}',
          lent_c[c] / lent_c[members[0]],
        )
        for c in members
      ],
    )
    for group, members in groups.items()
  ]
  lending = [
    (
      target.classes[t],
      [
        (_class_name(source, c), f'{_percent(row_c[c] / row_c.sum(), 0)} %')
        for c in _largest(row_c, 4)
      ],
    )
    for t, row_c in enumerate(pair_tc)
    if row_c.any()
  ]
  return counts, {'classes': classes, 'lending': lending}


def _largest(values, count) -> np.ndarray:
  """Positions of the largest values above zero, ties to the lower one."""
  order = np.argsort(-values, kind='stable')[:count]
  return order[values[order] > 0]


def _gallery(neighbours, target, source) -> list[dict]:
  """Target images beside their neighbours of some ranks."""
  searched = np.unique(neighbours.target)
  rows = []
  for t in searched[_spread(target.labels[searched], GALLERY_ROWS)]:
    pairs = neighbours.of(t)
    index, distance = neighbours.source[pairs], neighbours.distance[pairs]
    most = min(len(index), RANKS[-1])
    ranks = [*(r for r in RANKS if r < most), most]
    rows.append(
      {
        'id': target.ids[t],
        'class': target.classes[target.labels[t]],
        'image': _thumbnail(target, t),
        'neighbours': [
          {
            'rank': _ordinal(r),
            'distance': f'{distance[r - 1]:#.3g}',
            'id': source.ids[s],
            'class': _class_name(source, source.labels[s]),
            'image': _thumbnail(source, s),
          }
          for r, s in ((r, index[r - 1]) for r in ranks)
        ],
      }
    )
  return rows


def _spread(labels, count) -> np.ndarray:
  """Positions of `count` examples spread over the classes, earlier ones first.

  With more classes than `count`, the first example of evenly spaced classes;
  with fewer, the first of every class, then the second of every class, ...
  """
  order = np.argsort(labels, kind='stable')
  ordered = labels[order]
  repeat = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
  order = order[np.lexsort((ordered, repeat))]
  order = order[: max(count, len(np.unique(labels)))]
  picks = np.linspace(0, len(order) - 1, min(count, len(order)))
  return order[picks.astype(int)]


def _hardest(path, next_k_q, target) -> dict:
  """The target images with the largest next K, wrong and unsure ones first."""
  with np.load(path, allow_pickle=False) as file:
    ids, labels, probability = (
      file[f'train_{name}'] for name in ('id', 'label', 'probability')
    )
  place = {name: i for i, name in enumerate(target.ids.tolist())}
  index = np.array([place[name] for name in ids.tolist()], int)
  tiny = np.finfo(probability.dtype).tiny
  entropy = -(probability * np.log(np.maximum(probability, tiny))).sum(axis=1)
  predicted = probability.argmax(axis=1)
  right = predicted == labels
  order = np.lexsort((-entropy, right, -next_k_q[index]))[:HARDEST]
  cards = []
  for i in order:
    cards.append(
      {
        'id': ids[i],
        'class': target.classes[labels[i]],
        'image': _thumbnail(target, index[i]),
        'right': right[i],
        'predicted': target.classes[predicted[i]],
        'entropy': f'{entropy[i]:.2f}',
        'k': _count(next_k_q[index[i]]),
        'top': [
          (target.classes[c], f'{_percent(probability[i, c], 0)} %')
          for c in _largest(probability[i], 3)
        ],
      }
    )
  wrong = int(np.count_nonzero(~right))
  return {'cards': cards, 'wrong': wrong, 'images': len(ids)}


def _guard(workdir, results) -> dict | None:
  """Test images found in the source; None where nothing was looked for."""
  found = results.get('guard')
  if not found:
    return None
  rows = _csv(workdir / 'guard' / 'quarantine.csv')
  pairs = []
  for path in sorted((workdir / 'guard' / 'pairs').glob('*.jpg')):
    data = base64.b64encode(path.read_bytes()).decode()
    uri = f'data:image/jpeg;base64,{data}'
    pairs.append(rows[int(path.stem)] | {'uri': uri})
  head = ['Round', 'All test images, %', 'Without those in the source, %']
  both = zip(
    found['mean_class_accuracy'],
    found['mean_class_accuracy_without_exposed'],
    strict=True,
  )
  table = [[str(m), *map(_percent, values)] for m, values in enumerate(both)]
  return found | {
    'pairs': pairs,
    'accuracy': _table([head, *table])
    if found['test_images_exposed']
    else None,
  }


def _seconds(results) -> list[tuple[str, str, float]]:
  """(stage, seconds, fraction of the longest stage)."""
  stages = list(_flat(results.get('seconds', {})))
  longest = max((s for _, s in stages), default=0) or 1
  return [(stage, f'{s:,.1f}', s / longest) for stage, s in stages]


# ------------------------------------------------------------- comparison


def _ordered(arms: Mapping) -> dict:
  """The arms with the one that the others are compared to in front."""
  named = (arm.get('difference_to') for arm in arms.values())
  reference = next(filter(None, named), None)
  return dict(sorted(arms.items(), key=lambda item: item[0] != reference))


def _source_names(arms) -> list[str]:
  """Every source that some arm borrowed from, in order of appearance."""
  lists = (arm.get('images_selected') or {} for arm in arms.values())
  return list(dict.fromkeys(name for names in lists for name in names))


def _arm_table(arms) -> list[list[str]]:
  """Head and rows of the table of arms, in plain ASCII."""
  sources = _source_names(arms)
  fused = any(
    arm.get('fused') and arm['fused'] != arm['mean_class_accuracy']
    for arm in arms.values()
  )
  reference = next(iter(arms.values()))['title']
  head = ['Arm', 'Mean class accuracy, %', *['Rounds fused, %'] * fused]
  head += [f'Points against {reference}', 'Verdict']
  table = [[*head, *(f'Images of {name}' for name in sources)]]
  for i, arm in enumerate(arms.values()):
    several = len(arm['mean_class_accuracy']) > 1
    spread = f' +- {_percent(arm["std"])}' if several else ''
    row = [arm['title'], _percent(arm['mean']) + spread]
    if fused:
      row.append(_percent(np.mean(arm['fused']) if arm.get('fused') else None))
    row += [_difference(arm), _verdict(arm)] if i else ['-', '-']
    borrowed = arm.get('images_selected') or {}
    table.append([*row, *(_count(borrowed.get(name)) for name in sources)])
  return table


def _interval(arm) -> tuple[float, float] | None:
  """The 95 % interval of the difference; None where one seed has none."""
  low, high = arm.get('difference_interval') or (None, None)
  known = None not in (low, high) and math.isfinite(high - low)
  return (low, high) if known else None


def _difference(arm) -> str:
  text = _points(arm['difference_mean'])
  if interval := _interval(arm):
    text += ' [{}, {}]'.format(*map(_points, interval))
  return text


def _verdict(arm) -> str:
  if not (interval := _interval(arm)):
    return 'one seed'
  low, high = interval
  return 'gain' if low > 0 else 'loss' if high < 0 else 'no gain shown'


def _sentence(arms, name) -> str:
  """What one arm reached, and how that compares with the first."""
  arm, reference = arms[name], next(iter(arms.values()))
  seeds = len(arm['mean_class_accuracy'])
  drawn = f'over {seeds} seeds' if seeds > 1 else 'with one seed'
  text = (
    f'{arm["title"]}: {_percent(arm["mean"])} % mean class accuracy {drawn}'
  )
  if arm is reference:
    return f'{text}.'
  text += f', {_points(arm["difference_mean"])} points against '
  text += f'{reference["title"]}'
  if interval := _interval(arm):
    text += ' (95 % interval {} to {})'.format(*map(_points, interval))
  return f'{text}.' if _verdict(arm) == 'gain' else f'{text}: {_verdict(arm)}.'


def _run_results(workdir, arm) -> list[dict]:
  """`results.json` of every seed of an arm, by seed."""
  name = re.compile(re.escape(arm) + r'-(\d+)')
  found = {
    int(match[1]): path
    for path in (workdir / 'runs').glob('*')
    if (match := name.fullmatch(path.name))
  }
  return [_read(found[seed] / 'results.json') for seed in sorted(found)]


# ------------------------------------------------------------------ plots


@dataclasses.dataclass(frozen=True)
class _Line:
  """A curve with an optional band around it."""

  label: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class _Dots:
  """The values of an arm over the seeds, their mean and a range around it."""

  label: str
  values: Sequence[float]
  mean: float
  low: float
  high: float


def _run_plots(workdir, results, budgets) -> Iterator[dict | None]:
  """Accuracy and K over the rounds; losses over the updates."""
  rounds = results.get('rounds', [])
  x = [r['round'] for r in rounds]

  def percent(name):
    return [_number(r.get(name)) * 100 for r in rounds]

  lines = [
    _Line('test, mean over classes', x, percent('mean_class_accuracy')),
    _Line('training', x, percent('train_accuracy')),
  ]
  if results.get('fused') and len(x) > 1:
    fused = 100 * results['fused']['mean_class_accuracy']
    lines.append(_Line('test, rounds fused', [x[0], x[-1]], [fused, fused]))
  yield _curves('accuracy', 'Accuracy', 'round', 'per cent', lines)

  if budgets:
    k_mq = np.stack([k_q for k_q, _ in budgets])
    low, high = np.percentile(k_mq, [10, 90], axis=1)
    line = _Line('mean', range(len(k_mq)), k_mq.mean(axis=1), low, high)
    title = 'K, the neighbours a target image draws from'
    note = 'Mean over the target images; band: 10th to 90th percentile.'
    yield _curves('k', title, 'round', 'neighbours', [line], note=note)

  yield _loss_curves(workdir / 'metrics.jsonl')


def _loss_curves(path) -> dict | None:
  # By round and step, so that the lines of a resumed run replace those it
  # had already written.
  rows = {
    (r.get('round', -1), r['step']): r for r in _json_lines(path) if 'step' in r
  }
  names = dict.fromkeys(k for row in rows.values() for k in row)
  points = {name: [] for name in names if 'loss' in name}
  done, starts, last = 0, [], None
  for m, step in sorted(rows):
    if last and m != last[0]:
      # A round may count its steps from the start or from its own.
      done += last[1] if step <= last[1] else 0
      starts.append(done + step)
    last = m, step
    for name in points:
      if rows[last].get(name) is not None:
        points[name].append((done + step, rows[last][name]))
  lines = []
  for name, xy in points.items():
    size = math.ceil(len(xy) / 120)
    means = [np.mean(xy[i : i + size], axis=0) for i in range(0, len(xy), size)]
    lines.append(_Line(name.replace('_', ' '), *np.transpose(means)))
  return _curves('loss', 'Loss', 'updates', 'nats', lines, starts)


def _arm_plots(workdir, arms) -> Iterator[dict | None]:
  """Accuracies and differences of the arms, and their curves over rounds."""
  accuracy, difference = [], []
  for i, arm in enumerate(arms.values()):
    values = 100 * np.asarray(arm['mean_class_accuracy'], float)
    mean, std = 100 * arm['mean'], 100 * _number(arm.get('std'))
    dots = _Dots(arm['title'], values, mean, mean - std, mean + std)
    accuracy.append(dots)
    if i:
      values = 100 * np.asarray(arm['difference'], float)
      low, high = _interval(arm) or (math.nan, math.nan)
      mean = 100 * arm['difference_mean']
      dots = _Dots(arm['title'], values, mean, 100 * low, 100 * high)
      difference.append(dots)
  title = 'Mean class accuracy'
  note = 'A circle is a seed; the bar, their mean and one standard deviation.'
  yield _dots('arms', title, 'per cent', accuracy, note)
  title = f'Paired difference to {next(iter(arms.values()))["title"]}'
  note = 'A circle is a seed; the bar, their mean and its 95 % interval.'
  yield _dots('difference', title, 'points', difference, note, first=1)

  results = {name: _run_results(workdir, name) for name in arms}
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
        _Line(arms[arm]['title'], [*values], mean, mean - std, mean + std)
      )
    yield _curves(name, title, 'round', unit, lines, note=note)


def _test_percent(r) -> float:
  return 100 * r['mean_class_accuracy']


def _mean_k(r) -> float:
  """Mean K of a round, NaN where nothing is borrowed."""
  return r['mean_k'] if _borrowed(r) else math.nan


def _curves(
  name, title, x_label, y_label, lines, starts=(), note=''
) -> dict | None:
  """A plot of curves; None where no curve has two points."""
  if not any(np.isfinite(line.y).sum() > 1 for line in lines):
    return None
  style = list(
    zip(lines, itertools.cycle(zip(SERIES, MARKERS, strict=True)), strict=False)
  )

  def paint(axes):
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(visible=False, axis='x')
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    for x in starts:
      axes.axvline(x, color=RULE, linewidth=0.8)
    for line, (colour, (marker, _)) in style:
      if line.low is not None:
        axes.fill_between(
          line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0
        )
      axes.plot(
        line.x, line.y, color=colour, marker=marker if len(line.x) <= 12 else ''
      )

  alt = [f'{title} in {y_label} by {x_label}.']
  for line in lines:
    y = line.y if len(line.y) <= 12 else [line.y[0], line.y[-1]]
    joint = ', ' if len(line.y) <= 12 else ' to '
    alt.append(f'{line.label}: {joint.join(_short(v) for v in y)}.')
  key = [
    (SERIES.index(colour) + 1, glyph, line.label)
    for line, (colour, (_, glyph)) in style
  ]
  return {
    'title': title,
    'note': note,
    'key': key,
    'svg': _svg(name, ' '.join(alt), 2.7, paint),
  }


def _dots(name, title, unit, arms, note, first=0) -> dict | None:
  """A row of seeds for each arm; `first` is the colour of the first row."""
  if not arms:
    return None

  def paint(axes):
    axes.set(xlabel=unit, ylim=(0.5 - len(arms), 0.8), yticks=[])
    axes.grid(visible=False, axis='y')
    if first:
      axes.axvline(0, color=INK, linewidth=1)
    for y, arm in enumerate(arms):
      colour = SERIES[(first + y) % len(SERIES)]
      empty = {'markerfacecolor': 'none', 'markeredgecolor': colour}
      axes.plot(arm.values, [-y] * len(arm.values), 'o', alpha=0.6, **empty)
      axes.plot([arm.low, arm.high], [-y, -y], color=colour, linewidth=2.5)
      axes.plot(arm.mean, -y, '|', color=colour, ms=16, markeredgewidth=2.5)
      axes.text(
        0,
        0.3 - y,
        textwrap.shorten(arm.label, 60, placeholder=' …'),
        transform=axes.get_yaxis_transform(),
        parse_math=False,
        in_layout=False,
      )

  alt = [f'{title} in {unit}.']
  for arm in arms:
    low, mean, high = map(_short, (arm.low, arm.mean, arm.high))
    alt.append(f'{arm.label}: {mean}, from {low} to {high}.')
  svg = _svg(name, ' '.join(alt), 0.7 + 0.6 * len(arms), paint)
  return {'title': title, 'note': note, 'key': [], 'svg': svg}


def _svg(name, alt, height, paint) -> markupsafe.Markup:
  """What `paint` draws on the axes, as an inline image in the page's colours.

  Args:
    name: unique in the page; every id of the image begins with it.
    alt: what the image says, in words.
    height: inches, beside a width of 4.6.
    paint: draws on matplotlib axes.
  """
  buffer = io.StringIO()
  # The defaults first: no one's matplotlibrc may change the page.
  with matplotlib.style.context(['default', STYLE]), warnings.catch_warnings():
    # Text stays text, so the reader's fonts draw what matplotlib's lack.
    warnings.filterwarnings('ignore', 'Glyph')
    figure = matplotlib.figure.Figure((4.6, height), layout='constrained')
    paint(figure.add_subplot())
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
  found = re.search(r'viewBox="(.*?)".*?</defs>(.*)', buffer.getvalue(), re.S)
  box, body = found.groups()
  body = re.sub(r'(id="|href="#|url\(#)', rf'\1{name}-', body)
  body = body.replace('xlink:href', 'href')
  body = re.sub(r' font-family: [^;\"]*;', '', body)
  for colour, themed in THEME.items():
    body = body.replace(colour, themed)
  opening = markupsafe.Markup('<svg role="img" aria-label="{}" viewBox="{}">')
  return opening.format(alt, box) + markupsafe.Markup(body)


# ------------------------------------------------------------------- page


def _write(workdir, template, context) -> pathlib.Path:
  """Fills a template and puts the page in its place."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('sjft_jax'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template(template).render(context)
  path = workdir / 'report' / 'index.html'
  with files.replacing(path, 'w') as file:
    file.write(page)
  return path


def _thumbnail(dataset, index) -> dict | None:
  """A data URI and its size in pixels; None if the image cannot be read."""
  try:
    image = preprocess.decode(dataset.read(int(index)))
  except (OSError, preprocess.BadImage):
    return None
  side = max(image.shape[:2])
  # Nearest neighbours and whole factors keep the pixels of a tiny scan sharp.
  tiny = side <= THUMBNAIL // 3
  scale = THUMBNAIL // side if tiny else min(1, THUMBNAIL / side)
  height, width = (max(1, round(scale * n)) for n in image.shape[:2])
  method = cv2.INTER_NEAREST if tiny else cv2.INTER_AREA
  image = cv2.resize(image, (width, height), interpolation=method)
  kind = 'png' if tiny else 'jpeg'
  data = cv2.imencode(f'.{kind}', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
  text = base64.b64encode(data).decode()
  uri = f'data:image/{kind};base64,{text}'
  return {'uri': uri, 'width': width, 'height': height}


def _table(table) -> dict | None:
  """Typeset, without the columns that hold nothing; None without rows."""
  columns = [
    column
    for column in zip(*table, strict=True)
    if set(column[1:]) != {'-'} or column[0] == 'Verdict'
  ]
  head, *rows = zip(*columns, strict=True)
  rows = [(first, *map(_typeset, cells)) for first, *cells in rows]
  return {'head': head, 'rows': rows} if rows else None


def _aligned(table) -> list[str]:
  """Lines of a plain-text table, headings broken over several lines."""
  headings = [textwrap.wrap(cell, 17) for cell in table[0]]
  depth = max(map(len, headings))
  headings = [[''] * (depth - len(words)) + words for words in headings]
  rows = [*zip(*headings, strict=True), *table[1:]]
  width = [max(map(len, column)) for column in zip(*rows, strict=True)]
  first, *rest = width
  lines = [
    '  '.join([name.ljust(first), *map(str.rjust, cells, rest)]).rstrip()
    for name, *cells in rows
  ]
  rule = '-' * max(map(len, lines))
  return [*lines[:depth], rule, *lines[depth:]]


def _read(path) -> dict:
  return files.read_json(path) if path.exists() else {}


def _csv(path) -> list[dict]:
  if not path.exists():
    return []
  with open(path, newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def _json_lines(path) -> Iterator[dict]:
  """The objects of a file whose last line a kill may have cut short."""
  if path.exists():
    for line in path.read_text(encoding='utf-8').splitlines():
      with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(line)


def _flat(value, prefix='') -> Iterator[tuple[str, object]]:
  """('group.field', value) of nested mappings."""
  for name, item in value.items():
    if isinstance(item, Mapping):
      yield from _flat(item, f'{prefix}{name}.')
    else:
      yield prefix + name, item


def _class_name(source, label) -> str:
  """The class, and its source where there are several."""
  group, _, name = source.classes[label].partition(':')
  return f'{name} ({group})' if len(source.sources) > 1 else name


def _number(value) -> float:
  return math.nan if value is None else value


def _percent(fraction, digits=1) -> str:
  return '-' if fraction is None else f'{100 * fraction:.{digits}f}'


def _points(fraction) -> str:
  """A difference of fractions in percentage points, with its sign."""
  return f'{100 * fraction:+.1f}'


def _count(value) -> str:
  return f'{round(value):,}' if value else '-'


def _short(value) -> str:
  """Three digits, or all those before the point."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _ordinal(n) -> str:
  teen = n % 100 in (11, 12, 13)
  return f'{n}' + (
    'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')
  )


def _typeset(text) -> str:
  """The signs of a number that plain text has to spell."""
  if text == '-':
    return '\N{EN DASH}'
  text = text.replace('+-', '\N{PLUS-MINUS SIGN}')
  return re.sub(r'(?<![\w-])-(?=\d)', '\N{MINUS SIGN}', text)
