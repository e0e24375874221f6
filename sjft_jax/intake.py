"""Opens the data sets of a run, and finds their unreadable images."""

import functools
import operator

import numpy as np

from sjft_jax import files, paths, processes, progress
from sjft_jax import mesh as meshes
from sjft_jax.data import bad_images, datasets, pipelines
from sjft_jax.errors import UserError


def load(c, workdir):
  """The target without its unreadable images, and the whole source pool.

  Args:
    c: every setting; `target`, `source`, `seed`, `rounds`, `threads` and
      `max_bad_fraction` are read.
    workdir: directory of the run; data.json is written there, and
      bad_images.csv.

  Returns:
    (train, test, pool) data sets; pool is None where no source is wanted.

  Raises:
    UserError: if a set cannot be opened, is not the one this run began with,
      or has too many unreadable images, or none that is readable of a class or
      for the test; if an image cannot be read now.
  """
  train, test = datasets.open_target(c.target, c.seed, testing=c.rounds > 0)
  pool = None
  if c.selection != 'none' or c.pretrain.steps:
    pool = datasets.open_pool(c.source)
  digests = [d.digest for d in (train, test, pool) if d is not None]
  processes.agree(digests, 'images')
  processes.told(lambda: _remember(workdir, train, test, pool))
  # What an earlier start could not read may have been mended.
  listed = paths.path(workdir) / 'bad_images.csv'
  processes.told(lambda: listed.unlink(missing_ok=True))
  bad = {}
  with progress.bar(len(train) + len(test), 'check target') as bar:
    for dataset in (train, test):
      bad |= find_bad(dataset, c.threads, bar)
  report_bad(c, workdir, bad, len(train) + len(test))
  train, test = _without(train, bad), _without(test, bad)
  # A draw of some images may have met the broken ones of a class alone.
  drawn = c.target.per_class or c.target.folds or c.target.held_out
  lost = [] if c.rounds == 0 or len(test) else ['test image']
  if not drawn:
    empty = np.setdiff1d(np.arange(len(train.classes)), train.labels)
    lost += [f'training image of {train.classes[label]}' for label in empty]
  if lost:
    raise UserError(
      f'The target needs a readable {lost[0]}: see {listed}. Add one, and '
      'choose another --workdir.'
    )
  return train, test, pool


def find_bad(dataset, threads, bar):
  """{id: reason} of the images that cannot be decoded; moves the bar on.

  Each process decodes a share.

  Raises:
    UserError: if one cannot be read now.
  """
  index, count = meshes.share()
  mine = dataset.subset(np.arange(index, len(dataset), count))
  bad = {}
  for i, reason in pipelines.find_bad(mine, threads):
    bar.update(min(count, bar.total - bar.n))
    if reason is not None:
      bad[str(mine.ids[i])] = reason
  found = functools.reduce(operator.or_, processes.gathered(bad))
  for name, reason in found.items():
    # A later start would be one with other images.
    pipelines.refuse_transient(name, reason)
  return found


def report_bad(c, workdir, bad, total):
  """Lists unreadable images in bad_images.csv.

  Args:
    c: every setting; `max_bad_fraction` is read.
    workdir: directory of the run.
    bad: {id: reason}.
    total: images in the set they belong to.

  Raises:
    UserError: if they are more than `max_bad_fraction` of it.
  """
  processes.told(
    lambda: bad_images.record(
      paths.path(workdir) / 'bad_images.csv',
      bad.items(),
      total=total,
      max_fraction=c.max_bad_fraction,
    )
  )


def _without(dataset, bad):
  return dataset.subset(np.flatnonzero(~np.isin(dataset.ids, list(bad))))


def _remember(workdir, train, test, pool):
  """Writes data.json; a data set that changed under a run is refused."""
  path = paths.path(workdir) / 'data.json'
  value = {
    'target': {
      'classes': list(train.classes),
      'train': len(train),
      'test': len(test),
      'digest': train.digest + test.digest,
    }
  }
  if pool is not None:
    counts = np.bincount(pool.source, minlength=len(pool.sources))
    value['source'] = {
      'classes': list(pool.classes),
      'images': dict(zip(pool.sources, counts.tolist(), strict=True)),
      'digest': pool.digest,
    }
  if path.exists():
    old = files.read_json(path)
    changed = [
      name
      for name in old.keys() | value.keys()
      if old.get(name) != value.get(name)
    ]
    if changed:
      raise UserError(
        f'The images of {" and ".join(sorted(changed))} are not the ones '
        f'that the run in {workdir} began with. Restore them, or choose '
        'another --workdir.'
      )
  else:
    files.write_json(path, value)
