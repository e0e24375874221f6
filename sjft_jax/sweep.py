"""One run, or a comparison: every arm with every seed, in one directory.

The runs of a comparison lie in DIR/runs/<arm>-<seed>. What one of them has
computed and another needs too (the pretrained trunk, the neighbours of one
draw of the target) is taken over from it, not computed again.
"""

import copy
import pathlib

import numpy as np
import scipy.stats

from sjft_jax import files, rounds, settings, workdirs
from sjft_jax.data import datasets
from sjft_jax.errors import UserError
from sjft_jax.report import pages, summary


def run(c, workdir, mesh):
  """Runs what the config asks for, and prints what came out.

  Args:
    c: every setting.
    workdir: where the run leaves itself; an unfinished run there goes on.
    mesh: the devices.

  Raises:
    UserError: for settings that make no sense.
  """
  workdir = pathlib.Path(workdir)
  _check(c)
  workdirs.claim(workdir, c.to_dict())
  page = workdir / 'report' / 'index.html'
  if page.exists():
    print(f'{workdir} is finished: nothing was done, nothing has changed.\n')
  elif c.arms:
    _compare(c, workdir, mesh)
  else:
    rounds.run(c, workdir, mesh)
  print(summary.table(files.read_json(workdir / 'results.json')))
  neighbours = workdir / 'selection' / 'neighbours.parquet'
  if neighbours.exists():
    print(f'\nThe neighbours: {neighbours}')
  print(f'\nThe page to look at: {page}')


def _check(c):
  settings.check(c)
  if not c.arms:
    return
  if c.seeds < 2 or not c.rounds:
    raise UserError(
      'A comparison (arms) needs seeds >= 2 and rounds >= 1; came '
      f'seeds={c.seeds}, rounds={c.rounds}.'
    )
  for arm in c.arms:
    settings.check(_settings(c, arm, 0))


def _compare(c, workdir, mesh):
  results, seconds = {arm: [] for arm in c.arms}, {}
  done = []
  for seed in range(c.seeds):
    for arm in c.arms:
      print(f'== {arm}, seed {seed} (of 0..{c.seeds - 1})', flush=True)
      directory = workdir / 'runs' / f'{arm}-{seed}'
      results[arm].append(
        rounds.run(_settings(c, arm, seed), directory, mesh, donors=done)
      )
      done.append(directory)
      for stage, spent in results[arm][-1]['seconds'].items():
        seconds[stage] = round(seconds.get(stage, 0) + spent, 2)
  files.write_json(
    workdir / 'results.json',
    {
      'arms': summarise(results, {a: c.arms[a].title for a in c.arms}),
      'seconds': seconds,
      **workdirs.provenance(),
    },
  )
  # One run stands for all in the galleries: the last arm's first seed.
  arm = list(c.arms)[-1]
  example = _settings(c, arm, 0)
  train, _ = datasets.open_target(example.target, example.seed)
  pool = datasets.open_pool(example.source)
  pages.write_comparison(workdir, workdir / 'runs' / f'{arm}-0', train, pool)


def _settings(c, arm, seed):
  """The settings of one run of a comparison."""
  own = copy.deepcopy(c)
  with own.unlocked():
    own.arms, own.seeds = {}, 0
  try:
    own.update(c.arms[arm].set)
  except (KeyError, TypeError) as error:
    raise UserError(f'Settings of the arm {arm}: {error}') from error
  own.seed = seed
  return own


def summarise(results, titles):
  """The arms against the first of them, paired by seed.

  Args:
    results: {arm: [results.json of every seed]}, in the order of the table.
    titles: {arm: what the table calls it}.

  Returns:
    {arm: mean, spread and paired difference of the mean class accuracy}, with
    Student's 95 % interval of the mean difference over the seeds.
  """
  first = next(iter(results))
  reference = np.array([r['mean_class_accuracy'] for r in results[first]])
  summary = {}
  for arm, runs in results.items():
    accuracy = np.array([r['mean_class_accuracy'] for r in runs])
    difference = accuracy - reference
    interval = [0.0, 0.0]
    if difference.any():
      spread = scipy.stats.sem(difference)
      half = scipy.stats.t.ppf(0.975, len(runs) - 1) * spread
      interval = [difference.mean() - half, difference.mean() + half]
    selected = [r['rounds'][-1]['images_selected'] for r in runs]
    summary[arm] = {
      'title': titles[arm],
      'mean_class_accuracy': accuracy.tolist(),
      'mean': float(accuracy.mean()),
      'std': float(accuracy.std(ddof=1)),
      'difference_to': first,
      'difference': difference.tolist(),
      'difference_mean': float(difference.mean()),
      'difference_interval': [float(x) for x in interval],
      # None in a comparison without fusion.
      'fused': [r['fused']['mean_class_accuracy'] for r in runs if 'fused' in r]
      or None,
      'images_selected': {
        source: float(np.mean([s[source] for s in selected]))
        for source in selected[0]
      },
    }
  return summary
