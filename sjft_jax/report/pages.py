"""One offline HTML page: numbers, curves, neighbour galleries.

Everything shown is read back from the files that a run leaves, and images by
their ids: the same files give the same bytes. What a run did not leave (no
source, no rounds) is left out of its page.
"""

import pathlib

import jinja2

from sjft_jax import files, paths
from sjft_jax.data.dataset import Dataset
from sjft_jax.report import comparison, record, run, wording


def write_run(
  workdir: pathlib.Path,
  target_train: Dataset,
  source: Dataset | None,
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
  workdir = _named(workdir)
  context = run.context(workdir, target_train, source)
  return _write(workdir, 'run.html.j2', context)


def write_comparison(
  workdir: pathlib.Path,
  example: pathlib.Path,
  target_train: Dataset,
  source: Dataset | None,
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
  workdir, example = (_named(p) for p in (workdir, example))
  results = record.read(workdir / 'results.json')
  arms = comparison.ordered(results['arms'])
  arm, _, seed = example.name.rpartition('-')
  versions = {k: results[k] for k in ('device', 'versions') if k in results}
  context = run.context(example, target_train, source) | {
    'name': workdir.name,
    'sentence': wording.typeset(comparison.sentence(arms, arm)),
    'arms': wording.typeset_table(comparison.table(arms)),
    'tuning': wording.typeset_table(
      comparison.tuning_table(results.get('tuning', {}), arms)
    ),
    'arm_plots': list(filter(None, comparison.figures(workdir, arms))),
    'example': f'{arms[arm]["title"]}, seed {seed}',
    'seconds': record.seconds(results),
    'settings': list(
      record.flat(record.read(workdir / 'config.json') | versions)
    ),
  }
  return _write(workdir, 'comparison.html.j2', context)


def _named(workdir):
  """The directory by a path that ends in its name, as `.` does not."""
  workdir = paths.path(workdir)
  return workdir if paths.in_store(workdir) else workdir.resolve()


def _write(workdir, template, context) -> pathlib.Path:
  """Fills a template and puts the page in its place."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('sjft_jax.report'),
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
