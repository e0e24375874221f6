"""The leakage guard: target test images must not be learnt from the source.

Before anything is searched, the whole source is held against the target. What
repeats a test image is withheld from all that follows; what repeats a training
image is listed apart.
"""

import collections
import contextlib
import itertools
import pathlib

import cv2
import numpy as np

from sjft_jax import evaluate, files, paths, processes, repeats
from sjft_jax.data import preprocess
from sjft_jax.errors import UserError

_SHOWN = 24  # pairs
_SHOWN_SIDE = 128  # pixels
_HOW = 'tests', 'similarity', 'repeated'  # columns
# What results.json repeats of the record.
_COUNTS = (
  'checked',
  'test_images',
  'test_images_exposed',
  'train_images_repeated',
  'target_pairs',
  'target_pairs_across_train_and_test',
  'source_images_withheld',
  'source_images_withheld_by',
)


def withhold(c, train, test, pool, workdir, donors=()):
  """The source pool without the images that repeat a target test image.

  Leaves guard/ in the directory of the run: record.json; quarantine.csv, the
  source images that repeat test images; repeats.csv, those that repeat
  training images, withheld only if `guard.withhold_train`; pairs/, pictures of
  some rows of quarantine.csv, named by row; target_repeats.csv, target images
  that repeat each other, of which none is removed. In each list an image has
  one row, with the first image that it repeats and how many it repeats.

  Args:
    c: every setting; `guard`, `threads` and `max_bad_fraction` are read.
    train: target training images.
    test: target test images.
    pool: the source, or None.
    workdir: directory of the run.
    donors: directories of runs whose finished check is taken over where data
      and settings are the same.

  Returns:
    The pool without them; None if there is none.

  Raises:
    UserError: if the directory holds the check of other data sets, if an image
      of the target, or too many of the source, cannot be read now, or if no
      source image is left.
  """
  if pool is None:
    return None
  directory = paths.path(workdir) / 'guard'
  key = {
    'target': train.digest + test.digest,
    'source': pool.digest,
    'settings': {k: v for k, v in c.guard.items() if k != 'cache'},
  }

  def check():
    if _record(workdir):
      return
    paths.remove_tree(directory)
    if not files.adopt(
      directory,
      'record.json',
      [paths.path(donor) / 'guard' for donor in donors],
      lambda donor: _record(donor.parent).get('key') == key,
    ):
      with files.building(directory, 'record.json') as beside:
        _check(c, train, test, pool, beside, key)

  # By one process: what it waits for is mostly the disk, and its cache.
  processes.told(check)
  files.wait_for(directory / 'record.json')
  record = _record(workdir)
  if record.get('key') != key:
    raise UserError(
      f'{directory} holds the check of other images or settings than these. '
      'Choose another --workdir.'
    )
  left = pool.without(record['withheld'])
  if not len(left):
    # What comes later would ask for neighbours, or draw batches, of nothing.
    why = 'repeat test' + ' or training' * c.guard.withhold_train + ' images'
    why += ' or could not be read' * bool(record.get('source_images_unread'))
    lists = 'quarantine.csv' + ' and repeats.csv' * c.guard.withhold_train
    raise UserError(
      f'All {len(pool)} source images {why}, see {directory / lists}: give '
      'another source.'
    )
  if record['test_images_exposed']:
    print(
      f'{record["test_images_exposed"]} of {len(test)} test images are in the '
      f'source: {record["source_images_withheld"]} source images are withheld, '
      f'listed in {directory / "quarantine.csv"}.',
      flush=True,
    )
  if unread := record.get('source_images_unread'):
    print(
      f'{unread} source images could not be read when they were to be checked, '
      f'and are withheld, too: see {directory / "record.json"}.',
      flush=True,
    )
  return left


def remaining(pool, workdir):
  """The pool as `withhold` returned it to the run in `workdir`."""
  return pool.without(_record(workdir).get('withheld', ()))


def require(workdir, train, test, pool):
  """Refuses to go on without a record of the guard for exactly these sets.

  Args:
    workdir: directory of the run.
    train: target training images.
    test: target test images.
    pool: what `withhold` returned.

  Raises:
    UserError: if there is none.
  """
  if pool is None:
    return
  path = paths.path(workdir) / 'guard' / 'record.json'
  record = _record(workdir)
  ours = train.digest + test.digest, pool.digest
  if (record.get('key', {}).get('target'), record.get('remaining')) != ours:
    raise UserError(
      'Training needs a record that this source was checked against these '
      f'target images; {path} {"is of others" if record else "is missing"}. '
      'Choose another --workdir.'
    )


def exposure(c, workdir, test, posteriors) -> dict:
  """What results.json says of the guard.

  Args:
    c: every setting; names of weights are read.
    workdir: directory of the run.
    test: target test images.
    posteriors: class probabilities of the test images after each round, float
      [n, classes] each.

  Returns:
    Counts, and the mean class accuracy of each round on all test images and
    without those that are in the source; {} where no source was used.
  """
  record = _record(workdir)
  if not record:
    return {}
  clean = np.flatnonzero(~np.isin(test.ids, record['exposed']))

  def accuracy(posterior_nc, index):
    if not len(index):
      return None
    return evaluate.mean_class_accuracy(posterior_nc[index], test.labels[index])

  everything = np.arange(len(test))
  looked = record.get('quarantine', {})
  found = {k: record[k] for k in _COUNTS} | {
    'test_images_without_look': looked.get(
      'target_images_without_fingerprint', 0
    ),
    'source_images_unread': record.get('source_images_unread', 0),
    # What they were trained on is not known here.
    'weights_not_checked': [
      path for path in (c.model.weights, c.describe.weights) if path
    ],
    'mean_class_accuracy': [accuracy(p, everything) for p in posteriors],
    'mean_class_accuracy_without_exposed': [
      accuracy(p, clean) for p in posteriors
    ],
  }
  if len(posteriors) > 1:
    fused = evaluate.fuse(posteriors)
    found['fused_without_exposed'] = accuracy(fused, clean)
  return found


def cache_directory(setting) -> pathlib.Path:
  """Where hash tables are kept: the setting, or the user's cache."""
  return pathlib.Path(setting).expanduser() if setting else paths.cache()


def _record(workdir) -> dict:
  return files.read_json(paths.path(workdir) / 'guard' / 'record.json', {})


# --- The check ----------------------------------------------------------------


def _check(c, train, test, pool, directory, key):
  """Compares and writes all files."""
  directory.mkdir(parents=True)
  by_part, counts = {'repeats': [], 'quarantine': [], 'inside': []}, {}
  if c.guard.enabled:
    by_part, counts = _find(c, train, test, pool)
  firsts = {}
  for name, dataset in (('repeats', train), ('quarantine', test)):
    firsts[name] = _first(by_part[name])
    rows = [
      _row(pool.ids[r.source], dataset.ids[r.targets[0]], r, many)
      for r, many in firsts[name]
    ]
    header = 'source_id', 'target_id', *_HOW
    files.write_csv(directory / f'{name}.csv', header, rows)
  inside = [
    (one, other, r, many)
    for one, other, found in by_part['inside']
    for r, many in _first(found)
  ]
  rows = [
    _row(one.ids[r.source], other.ids[r.targets[0]], r, many)
    for one, other, r, many in inside
  ]
  header = 'id', 'repeats_id', *_HOW
  files.write_csv(directory / 'target_repeats.csv', header, rows)
  leaks = by_part['quarantine']
  _draw_pairs(
    directory / 'pairs', [r for r, _ in firsts['quarantine']], test, pool
  )
  hits = leaks + by_part['repeats'] * c.guard.withhold_train
  withheld = {str(pool.ids[i]) for i in {hit.source for hit in hits}}
  # What nobody could look at is not learnt from.
  parts = ('quarantine', 'repeats')[: 1 + c.guard.withhold_train]
  unread = {
    i
    for part in parts
    for name in pool.sources
    for i in counts.get(part, {}).get(name, {}).get('unread', ())
  }
  if len(unread) > c.max_bad_fraction * len(pool):
    raise UserError(
      f'{len(unread)} of {len(pool)} source images cannot be read now, '
      f'{min(unread)} among them, more than max_bad_fraction='
      f'{c.max_bad_fraction}. Look after their disk, then give the same '
      'command again.'
    )
  exposed = sorted(str(test.ids[t]) for t in _targets(leaks))
  files.write_json(
    directory / 'record.json',
    {
      'checked': c.guard.enabled,
      'key': key,
      'remaining': pool.without(withheld | unread).digest,
      'test_images': len(test),
      'test_images_exposed': len(exposed),
      'train_images': len(train),
      'train_images_repeated': len(_targets(by_part['repeats'])),
      'target_pairs': sum(many for *_, many in inside),
      'target_pairs_across_train_and_test': sum(
        many for one, other, _, many in inside if one is not other
      ),
      'source_images': len(pool),
      'source_images_withheld': len(withheld),
      'source_images_unread': len(unread),
      'source_images_withheld_by': {
        name: len({leak.source for leak in leaks if name in leak.tests})
        for name in repeats.TESTS
      },
      **counts,
      'exposed': exposed,
      'withheld': sorted(withheld | unread),
    },
  )


def _find(c, train, test, pool):
  """What repeats what, and counts.

  Returns:
    {'repeats': of train, 'quarantine': of test, 'inside': (set, set, repeats)
    of the target itself}, and counts of every comparison.
  """
  limits = {
    'screen': c.guard.screen,
    'confirm': c.guard.confirm,
    'threads': c.threads,
  }
  cache = cache_directory(c.guard.cache)
  targets = {
    'repeats': repeats.Target(train, c.threads, 'hash target'),
    'quarantine': repeats.Target(test, c.threads, 'hash target test'),
  }
  found, counts = collections.defaultdict(list), {}
  stop = np.searchsorted(pool.source, np.arange(len(pool.sources)), 'right')
  for part, target in targets.items():
    counts[part] = {'target_images_without_fingerprint': target.without}
    for name, first, last in zip(
      pool.sources, [0, *stop[:-1]], stop, strict=True
    ):
      more, counts[part][name] = repeats.find(
        pool, int(first), int(last), target, cache=cache, **limits
      )
      found[part] += more
  mine, other = targets['repeats'], targets['quarantine']
  # Those across training and test first: the report shows the first ones.
  for one, against in ((other, mine), (mine, mine), (other, other)):
    more = repeats.within(one, against, **limits)
    found['inside'].append((one.dataset, against.dataset, more))
  return found, counts


def _first(found):
  """Of each image its repeat of the lowest target, and how many it repeats."""
  many, first = collections.Counter(), {}
  for r in found:
    many[r.source] += r.repeated
    first.setdefault(r.source, r)
  return [(r, many[source]) for source, r in sorted(first.items())]


def _targets(found) -> set[int]:
  """The target images that are repeated."""
  # Of a file with many copies, once for all the images that repeat it.
  groups = {r.targets[0]: r.targets for r in found}
  return set(itertools.chain.from_iterable(groups.values()))


def _row(one, other, repeat, many):
  similarity = repeat.similarity
  text = '' if similarity is None else f'{similarity:.4f}'
  return one, other, '+'.join(repeat.tests), text, many


def _draw_pairs(directory, leaks, test, pool):
  """Source image left, test image right, of rows spread over the list."""
  shown = np.linspace(0, len(leaks) - 1, min(_SHOWN, len(leaks))).astype(int)
  for row in shown:
    with contextlib.suppress(OSError, preprocess.BadImage):
      pair = [
        _fit(preprocess.decode(pool.read(leaks[row].source))),
        _fit(preprocess.decode(test.read(leaks[row].targets[0]))),
      ]
      both = np.concatenate(pair, axis=1)[..., ::-1]
      with files.replacing(directory / f'{row:06d}.jpg') as file:
        file.write(cv2.imencode('.jpg', both)[1].tobytes())


def _fit(image):
  """The image in the middle of a white square."""
  scale = _SHOWN_SIDE / max(image.shape[:2])
  height, width = (max(1, round(scale * side)) for side in image.shape[:2])
  how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
  image = cv2.resize(image, (width, height), interpolation=how)
  square = np.full((_SHOWN_SIDE, _SHOWN_SIDE, 3), 255, np.uint8)
  top, left = (_SHOWN_SIDE - height) // 2, (_SHOWN_SIDE - width) // 2
  square[top : top + height, left : left + width] = image
  return square
