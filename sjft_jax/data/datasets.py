"""Image sets as random access: encoded bytes, a label and a stable id each.

A set is described by a plain mapping: `kind` folder, packaged or tfds, and the
fields in FIELDS. A folder may also lie in a zip or tar archive, or be listed in
a csv file, and all of these on a disk or in a store. The target has a `train`
and a `test` part; the source pool is any number of named sets whose classes are
laid side by side.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sjft_jax import errors, paths
from sjft_jax.data import folders, image_files, packaged, tfds_sets
from sjft_jax.data.dataset import Dataset, bare

FIELDS = {
  'kind': 'folder',
  'name': '',  # packaged, tfds: which set
  'dir': '',  # folder: a source's directory, archive or csv; tfds: data_dir
  'train': '',  # target: a directory, archive or csv (folder), or a split
  'test': '',  # target: likewise; '' = what per_class or held_out leaves
  'split': '',  # source: a split (packaged, tfds)
  'per_class': 0,  # target: training images drawn of each class; 0 = all
  'held_out': 0.0,  # target: share of each class that is drawn for test
  'folds': 0,  # target: parts of the training images, one of which is the test
  'fold': 0,  # target: which one
  'use': True,  # source: False leaves it out
  'quota': 0,  # source: images drawn, as evenly over the classes as they allow
}

# --- Openers: (spec, part, setting) -> Dataset with bare ids ------------------
# `part` is the directory or split to open, `setting` the name of its setting.


def _folder(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  del spec
  return folders.open_folder(part, setting)


def _packaged(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  del setting
  images = packaged.load(spec['name'], part)
  return bare(
    images.classes,
    images.ids,
    images.labels,
    sizes=[len(file) for file in images.files],
    read=images.files.__getitem__,
  )


OPENERS = {
  'folder': _folder,
  'packaged': _packaged,
  'tfds': tfds_sets.open_split,
}


def _open(spec: Mapping[str, Any], part: str, setting: str) -> Dataset:
  if spec['kind'] not in OPENERS:
    group = setting.rpartition('.')[0]
    raise errors.UserError(
      f'{group}.kind is one of {", ".join(OPENERS)}; {spec["kind"]!r} came.'
    )
  try:
    dataset = OPENERS[spec['kind']](spec, part, setting)
  except OSError as e:
    if not paths.is_transient(e):
      raise
    what = image_files.legible(str(e.filename or part))
    raise paths.unreadable(f'{setting}: {what}', e) from e
  if len(set(dataset.ids.tolist())) < len(dataset):
    raise errors.UserError(
      f'{setting}: two images have the same name once it is written as text:'
      ' rename the files whose names are not UTF-8.'
    )
  return dataset


def _fill(spec: Mapping[str, Any]) -> dict[str, Any]:
  return FIELDS | {k: v for k, v in dict(spec).items() if v is not None}


def _named(dataset: Dataset, name: str, prefix: str) -> Dataset:
  ids = np.char.add(prefix, dataset.ids)
  return dataclasses.replace(dataset, name=name, ids=ids)


def _refuse_empty_classes(dataset: Dataset, setting: str) -> None:
  count = np.bincount(dataset.labels, minlength=len(dataset.classes))
  empty = [c for c, n in zip(dataset.classes, count, strict=True) if n == 0]
  if empty:
    raise errors.UserError(
      f'{setting} needs at least one image of every class; {_some(empty)} has'
      ' none: add images, or remove the class.'
    )


def _some(names: list[str]) -> str:
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return ', '.join(names[:5]) + more


# --- The target ---------------------------------------------------------------


def open_target(
  spec: Mapping[str, Any], seed: int, *, testing: bool = True
) -> tuple[Dataset, Dataset]:
  """Opens the labelled target set.

  Args:
    spec: kind, name, dir, train, test, per_class, held_out, folds and fold of
      FIELDS. With per_class = n > 0, n training images of each class are drawn;
      if test is '', the test set is all that the draw leaves. With held_out = x
      > 0, the test set is that share of each class, rounded to the next whole
      image. With folds = n > 0, what would be the training set is cut into n
      parts, evenly in each class, of which number `fold` is the test set and
      the others the training set; the real test set is not opened.
    seed: of the draws, which depend on it and on the ids alone.
    testing: whether there must be test images.

  Returns:
    Training and test set. Both have the training set's classes; an id is
    'target:train/<id>' or 'target:test/<id>', after the part that was read.

  Raises:
    UserError: if a part cannot be opened or is empty, a training class has no
      or too few images, or a test class is unknown to training.
  """
  spec = _fill(spec)
  train = _open(spec, spec['train'], 'target.train')
  train = _named(train, 'target', 'target:train/')
  _refuse_empty_classes(train, 'target.train')
  test = None
  if spec['test'] and not spec['folds']:
    test = _open(spec, spec['test'], 'target.test')
    test = _named(test, 'target', 'target:test/')
    test = _relabel(test, train.classes)
  if spec['held_out']:
    if spec['test'] or not 0 < spec['held_out'] < 1:
      raise errors.UserError(
        'target.held_out is a share between 0 and 1, without target.test;'
        f' came {spec["held_out"]} and target.test={spec["test"]!r}: leave one'
        ' of them out.'
      )
    drawn = _hold_out(train, spec['held_out'], seed)
    test = train.subset(np.flatnonzero(drawn))
    train = train.subset(np.flatnonzero(~drawn))
  if spec['per_class']:
    drawn = _draw(train, spec['per_class'], seed)
    test = train.subset(np.flatnonzero(~drawn)) if test is None else test
    train = train.subset(np.flatnonzero(drawn))
  if spec['folds']:
    inside = _folds(train, spec['folds'], seed) == spec['fold']
    test = train.subset(np.flatnonzero(inside))
    train = train.subset(np.flatnonzero(~inside))
  if test is None:
    test = train.subset(np.arange(0))
  if testing and not len(test):
    raise errors.UserError(
      'The target needs test images; there are none: set --config.target.test,'
      ' --config.target.held_out, or a smaller --config.target.per_class, which'
      ' leaves some.'
    )
  return train, test


def _relabel(test: Dataset, classes: tuple[str, ...]) -> Dataset:
  label_of = {name: label for label, name in enumerate(classes)}
  # A Mac writes é as e and an accent, others as one character.
  composed = functools.partial(unicodedata.normalize, 'NFC')
  alike = {composed(name): label for name, label in label_of.items()}
  found = [label_of.get(x, alike.get(composed(x), -1)) for x in test.classes]
  label = np.array(found, np.int32)
  unknown = [name for name, i in zip(test.classes, found, strict=True) if i < 0]
  if unknown:
    raise errors.UserError(
      'target.test may only hold classes of target.train; it also holds'
      f' {_some(unknown)}: rename or remove them.'
    )
  return dataclasses.replace(test, classes=classes, labels=label[test.labels])


def _by_class(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
  """(class, positions of its images in the order of their ids)."""
  order = np.argsort(dataset.ids, kind='stable')
  order = order[np.argsort(dataset.labels[order], kind='stable')]
  count = np.bincount(dataset.labels, minlength=len(dataset.classes))
  parts = np.split(order, np.cumsum(count)[:-1])
  yield from zip(dataset.classes, parts, strict=True)


def _hold_out(dataset: Dataset, share: float, seed: int) -> np.ndarray:
  """Marks a share of each class, bool [n]; one image of each is left."""
  rng = np.random.default_rng([seed, 1])
  drawn = np.zeros(len(dataset), bool)
  for _, index in _by_class(dataset):
    count = min(round(share * len(index)), len(index) - 1)
    drawn[rng.choice(index, count, replace=False)] = True
  return drawn


def _folds(dataset: Dataset, folds: int, seed: int) -> np.ndarray:
  """The fold of each image, int [n]: as many of a class in each as can be."""
  rng = np.random.default_rng([seed, 2])
  fold, begin = np.empty(len(dataset), int), 0
  for name, index in _by_class(dataset):
    if len(index) < 2:
      raise errors.UserError(
        f'target.folds needs two training images of every class; {name} has'
        f' {len(index)}: add images, or leave target.folds at 0.'
      )
    # A class goes on where the one before ended: folds of one size.
    fold[rng.permutation(index)] = (begin + np.arange(len(index))) % folds
    begin += len(index)
  return fold


def _draw(dataset: Dataset, per_class: int, seed: int) -> np.ndarray:
  """Marks per_class images of each class, bool [n]."""
  rng = np.random.default_rng(seed)
  drawn = np.zeros(len(dataset), bool)
  for name, index in _by_class(dataset):
    if len(index) < per_class:
      raise errors.UserError(
        f'target.per_class needs {per_class} training images of every class;'
        f' {name} has {len(index)}: lower it, or add images.'
      )
    drawn[rng.choice(index, per_class, replace=False)] = True
  return drawn


# --- The source pool ----------------------------------------------------------


def open_pool(specs: Mapping[str, Mapping[str, Any]]) -> Dataset:
  """Opens several sources as one set, their classes side by side.

  Args:
    specs: source name -> kind, name, dir, split, use and quota of FIELDS. A
      quota is the same draw in every run.

  Returns:
    The pool, sources in the order of `specs`; ids '<source>:<id>', classes
    '<source>:<class>'.

  Raises:
    UserError: if there is no source, one cannot be opened, one has a class
      without images or a quota that leaves some class none, or two are the
      same images.
  """
  specs = {k: v for k, v in specs.items() if _fill(v)['use']}
  if not specs:
    raise errors.UserError(
      'The pool needs a source; none was given: --config.source.main.dir=DIR.'
    )
  parts, owner = [], {}
  for name, spec in specs.items():
    spec = _fill(spec)
    field = 'dir' if spec['kind'] == 'folder' else 'split'
    setting = f'source.{name}.{field}'
    part = _named(_open(spec, spec[field], setting), name, f'{name}:')
    _refuse_empty_classes(part, setting)
    if spec['quota']:
      part = part.subset(_quota(part, spec['quota'], f'source.{name}.quota'))
    place = _place(spec)
    if place in owner:
      raise errors.UserError(
        f'Every source needs its own images; source.{owner[place]} and'
        f' source.{name} are the same: remove one of them.'
      )
    owner[place] = name
    parts.append(part)

  first_label = np.cumsum([0] + [len(part.classes) for part in parts])
  first = np.cumsum([0] + [len(part) for part in parts])
  source = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(first))
  reads = [part.read for part in parts]

  def read(i: int) -> bytes:
    s = source[i]
    return reads[s](int(i - first[s]))

  return Dataset(
    name='pool',
    classes=tuple(f'{p.name}:{name}' for p in parts for name in p.classes),
    ids=np.concatenate([part.ids for part in parts]),
    labels=np.concatenate(
      [
        p.labels + np.int32(at)
        for p, at in zip(parts, first_label[:-1], strict=True)
      ]
    ),
    sizes=np.concatenate([part.sizes for part in parts]),
    read=read,
    version=' '.join(part.version for part in parts),
    sources=tuple(part.name for part in parts),
    stamps=tuple(part.stamps[0] for part in parts),
    source=source,
  )


def _quota(dataset: Dataset, quota: int, setting: str) -> np.ndarray:
  """Positions, ascending: the first of every class, the second of every, ..."""
  if not len(dataset.classes) <= quota <= len(dataset):
    raise errors.UserError(
      f'{setting} needs at least an image of each of the'
      f' {len(dataset.classes)} classes, and at most the {len(dataset)} there'
      f' are; {quota} came: change it, or 0 for all.'
    )
  rng = np.random.default_rng(0)
  turn = np.empty(len(dataset))
  for _, index in _by_class(dataset):
    # Whoever comes in the last, incomplete turn is drawn too.
    turn[rng.permutation(index)] = np.arange(len(index)) + rng.random()
  return np.sort(np.argsort(turn, kind='stable')[:quota])


def _place(spec: Mapping[str, Any]) -> tuple[str, ...]:
  """Where a source's images are: equal for sources that are named the same.

  An archive beside a part of it, a folder beside what it wraps, or overlapping
  splits, are not recognised.
  """
  if spec['kind'] == 'folder':
    return 'folder', _resolved(spec['dir'])
  where = spec['dir'] and _resolved(spec['dir'])
  return spec['kind'], spec['name'], where, spec['split']


def _resolved(text: str) -> str:
  path = paths.path(text)
  return str(path if paths.in_store(path) else path.resolve())
