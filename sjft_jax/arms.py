"""A comparison: every arm with every seed, in one directory.

The runs lie in DIR/runs/<arm>-<seed>. What one of them has computed and another
needs too (the pretrained trunk, the neighbours of one draw of the target) is
taken over from it, not computed again. An arm is settings of the one path, or
the average of what other arms' networks answer, which needs no run.
"""

import copy
import math
import numbers

import numpy as np

from sjft_jax import (
  evaluate,
  files,
  intervals,
  learn,
  preflight,
  processes,
  round_files,
  rounds,
  settings,
  tuning,
)
from sjft_jax.errors import UserError

# What an arm may say of itself.
_FIELDS = (
  'title', 'set', 'tune', 'average', 'all_rounds', 'distilled', 'published',
)  # fmt: skip


def names(c) -> list[str]:
  """The arms in the order of the table; the first is the reference."""
  return list(c.order or c.arms)


def check(c):
  """Refuses arms that make no sense, before the first of them runs.

  Args:
    c: every setting, with arms.

  Raises:
    UserError: in one line.
  """
  if c.seeds < 2 or not c.rounds:
    raise UserError(
      'A comparison (arms) needs seeds >= 2 and rounds >= 1; came '
      f'seeds={c.seeds}, rounds={c.rounds}.'
    )
  if sorted(names(c)) != sorted(c.arms):
    raise UserError(
      f'order must name every arm once ({", ".join(c.arms)}), not '
      f'{", ".join(names(c))}.'
    )
  for arm in c.arms:
    unknown = sorted(set(c.arms[arm]) - set(_FIELDS))
    # It names directories.
    if not arm.replace('-', '_').isidentifier():
      raise UserError(f'arms needs names of letters and digits; came {arm!r}.')
    if unknown or 'title' not in c.arms[arm]:
      raise UserError(
        f'arms.{arm} needs a title and takes {", ".join(_FIELDS)}; came '
        f'{", ".join(c.arms[arm]) or "nothing"}.'
      )
    _check_fields(c.arms[arm], f'arms.{arm}')
    averaged = c.arms[arm].get('average')
    if averaged is None:
      own = settings_of(c, arm, 0)
      settings.check(own)
      if not own.rounds:
        raise UserError(f'arms.{arm} needs rounds >= 1; came rounds=0.')
      tuning.check(c, arm, own)
    elif not averaged or not all(other in _trained(c) for other in averaged):
      raise UserError(
        f'arms.{arm}.average must name arms that are trained '
        f'({", ".join(_trained(c)) or "none here"}), not '
        f'{", ".join(averaged) or "none"}.'
      )
    elif c.arms[arm].get('distilled') and not all(
      settings_of(c, other, 0).distill.steps for other in averaged
    ):
      raise UserError(
        f'arms.{arm}.distilled needs distill.steps above 0 in '
        f'{", ".join(averaged)}.'
      )


def _check_fields(spec, setting):
  """Refuses what an arm says of itself, if it would be passed over."""
  title, published = spec.title, spec.get('published')
  if not isinstance(title, str) or not title.strip():
    raise UserError(f'{setting}.title needs a text; came {title!r}.')
  number = isinstance(published, numbers.Real)
  if published is not None and not (
    number and not isinstance(published, bool) and math.isfinite(published)
  ):
    raise UserError(
      f'{setting}.published needs a number, in per cent; came {published!r}.'
    )
  averages = spec.get('average') is not None
  for name in ('set', 'tune') if averages else ('all_rounds', 'distilled'):
    if spec.get(name):
      why = (
        'has no runs of its own, since it has average'
        if averages
        else 'has no average, which alone takes it'
      )
      raise UserError(f'{setting} {why}: leave {name} out.')


def compare(c, workdir, mesh) -> dict:
  """Runs every arm with every seed.

  Args:
    c: every setting, with arms.
    workdir: directory of the comparison; finished runs in it are kept.
    mesh: the devices.

  Returns:
    What results.json holds: `arms`, `seconds` by stage, with all trials as one
    stage `tuning`, and, of a tuned comparison, `tuning`.
  """
  found, seconds = {arm: [] for arm in names(c)}, {}
  tuned, done = {}, []
  # All of them first: the last arm may begin days after the first.
  for arm in _trained(c):
    own = settings_of(c, arm, 0)
    try:
      preflight.check_devices(own, mesh)
      learn.check(own, mesh, _directory(workdir, arm, 0))
      for bank in tuning.banks(c, arm, own) or [own]:
        preflight.check_files(bank)
    except UserError as error:
      raise UserError(f'arms.{arm}: {error}') from error
  for seed in range(c.seeds):
    for arm in _trained(c):
      own = settings_of(c, arm, 0)
      if not seed and tuning.is_open(c, arm, own):
        tuned[arm] = tuning.tune(c, arm, own, workdir, mesh, done)
        # What was found is the same at any speed.
        spent = tuned[arm].pop('seconds')
        seconds['tuning'] = round(seconds.get('tuning', 0) + spent, 2)
        if processes.first():
          files.write_json(workdir / 'tuning.json', tuned)
      print(f'== {arm}, seed {seed} (of 0..{c.seeds - 1})', flush=True)
      directory = _directory(workdir, arm, seed)
      own = settings_of(c, arm, seed, tuned)
      found[arm].append(rounds.run(own, directory, mesh, donors=done))
      done.append(directory)
      for stage, spent in found[arm][-1]['seconds'].items():
        seconds[stage] = round(seconds.get(stage, 0) + spent, 2)
    for arm in names(c):
      if arm not in _trained(c):
        found[arm].append(_averaged(c, arm, seed, workdir))
  value = {'arms': summarise(found, c.arms), 'seconds': seconds}
  return value | ({'tuning': tuned} if tuned else {})


def example(c, workdir):
  """One run to stand for all: (directory, settings) of the last arm's first."""
  arm = _trained(c)[-1]
  return _directory(workdir, arm, 0), settings_of(c, arm, 0)


def settings_of(c, arm, seed, tuned=None):
  """The settings of one run of a comparison.

  Args:
    c: every setting, with arms.
    arm: name of one that is trained.
    seed: of the draws and of training.
    tuned: {arm: what `tuning.tune` returned}; one that is not there is as the
      config says.

  Raises:
    UserError: if the arm has a setting that there is not.
  """
  own = copy.deepcopy(c)
  with own.unlocked():
    own.arms, own.order, own.seeds, own.tune = {}, (), 0, {}
  try:
    own.update(c.arms[arm].get('set', {}))
  except (KeyError, TypeError) as error:
    raise UserError(f'Settings of the arm {arm}: {error}') from error
  if tuned and arm in tuned:
    tuning.apply(own, tuning.room(c, arm), **tuned[arm]['chosen'])
  own.seed = seed
  return own


def _trained(c) -> list[str]:
  """The arms that are runs, in their order."""
  return [arm for arm in names(c) if c.arms[arm].get('average') is None]


def _directory(workdir, arm, seed):
  return workdir / 'runs' / f'{arm}-{seed}'


def _averaged(c, arm, seed, workdir):
  """The results of the average of other arms' class probabilities."""
  spec, found = c.arms[arm], []
  for other in spec.average:
    directory = _directory(workdir, other, seed)
    folders = round_files.directories(directory)
    if spec.get('distilled'):
      folders = [directory / round_files.DISTILLED]
    chosen = folders if spec.get('all_rounds') else folders[-1:]
    found += map(round_files.posteriors, chosen)
  ids = found[0]['test_id']
  if not all(np.array_equal(f['test_id'], ids) for f in found):
    raise UserError(
      f'arms.{arm}.average needs arms of one test set; those of '
      f'{", ".join(spec.average)} differ. Give them the same target.'
    )
  fused_nc = evaluate.fuse([f['test_probability'] for f in found])
  label_n = found[0]['test_label']
  return {
    'mean_class_accuracy': evaluate.mean_class_accuracy(fused_nc, label_n)
  }


def summarise(results, arms):
  """The arms against the first of them, paired by seed.

  Args:
    results: {arm: [results.json of every seed]}, in the order of the table.
    arms: {arm: its settings, `title` and perhaps `published`}.

  Returns:
    {arm: mean, spread and paired difference of the mean class accuracy}, with
    the 95 % bootstrap interval of the mean difference over the seeds, None
    where the seeds are too few for one.
  """
  first = next(iter(results))
  reference = np.array([r['mean_class_accuracy'] for r in results[first]])
  summary = {}
  for arm, runs in results.items():
    accuracy = np.array([r['mean_class_accuracy'] for r in runs])
    difference = accuracy - reference
    selected = [
      r['rounds'][-1]['images_selected'] for r in runs if 'rounds' in r
    ]
    summary[arm] = {
      'title': arms[arm].title,
      # Of the paper, in per cent.
      'published': arms[arm].get('published'),
      'mean_class_accuracy': accuracy.tolist(),
      'mean': float(accuracy.mean()),
      'std': float(accuracy.std(ddof=1)),
      'difference_to': first,
      'difference': difference.tolist(),
      'difference_mean': float(difference.mean()),
      'difference_interval': intervals.bootstrap_t(difference),
      # None in a comparison without fusion.
      'fused': [r['fused']['mean_class_accuracy'] for r in runs if 'fused' in r]
      or None,
      'images_selected': {
        source: float(np.mean([s[source] for s in selected]))
        for source in (selected[0] if selected else ())
      },
    }
  return summary
