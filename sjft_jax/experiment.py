"""What a config asks for: one run, or a comparison of arms."""

import contextlib

import numpy as np

from sjft_jax import (
  arms,
  files,
  guard,
  paths,
  processes,
  rounds,
  settings,
  workdirs,
)
from sjft_jax.data import bad_images, datasets
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
  workdir = paths.path(workdir)
  settings.check(c)
  if c.arms:
    arms.check(c)
  elif c.seeds or c.order or c.tune.folds:
    raise UserError(
      'seeds, order and tune are of a comparison, and this config has no arms. '
      'Leave them out, or take a config with arms; a single run has '
      '--config.seed.'
    )
  if c.arms and c.seed:
    raise UserError(
      f'A comparison has the seeds 0..seeds-1; leave seed={c.seed} out.'
    )
  processes.agree(c.to_dict(), 'settings')
  page = workdir / 'report' / 'index.html'
  with contextlib.ExitStack() as stack:

    def is_finished():
      stack.enter_context(workdirs.held(workdir))
      renamed = workdirs.claim(workdir, c.to_dict())
      return page.exists() and not renamed

    if processes.told(is_finished):
      print(f'{workdir} is finished: nothing was done, nothing has changed.\n')
    elif c.arms:
      _compare(c, workdir, mesh)
    else:
      rounds.run(c, workdir, mesh)
  if not processes.first():
    return
  results = files.read_json(workdir / 'results.json')
  print(summary.table(results, c.to_dict()))
  neighbours = workdir / 'selection' / 'neighbours.parquet'
  if neighbours.exists():
    print(f'\nThe neighbours: {neighbours}')
  print(f'\nThe page to look at: {page}')


def seen(c, directory):
  """The images that a finished run had: (target training images, pool).

  The pool is None where nothing was borrowed.

  Args:
    c: its settings.
    directory: of the run, which lists what it could not read and withheld.

  Raises:
    UserError: if a set cannot be opened.
  """
  train, _ = datasets.open_target(c.target, c.seed)
  bad = list(bad_images.read(directory / 'bad_images.csv'))
  train = train.subset(np.flatnonzero(~np.isin(train.ids, bad)))
  if c.selection == 'none':
    return train, None
  return train, guard.remaining(datasets.open_pool(c.source), directory)


def _compare(c, workdir, mesh):
  results = arms.compare(c, workdir, mesh)

  def finish():
    files.write_json(workdir / 'results.json', results | workdirs.provenance())
    workdirs.show_anew(workdir, c.to_dict())
    # One run stands for all in the galleries: the last arm's first seed.
    directory, shown = arms.example(c, workdir)
    pages.write_comparison(workdir, directory, *seen(shown, directory))

  processes.told(finish)
