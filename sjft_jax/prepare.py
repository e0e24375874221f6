"""Prepares a data set once: python -m sjft_jax.prepare --dataset=NAME ...

Writes array_record files into --data_dir, which a run then reads with
--config.target.kind=tfds or --config.source.main.kind=tfds. The archives are
put into --manual_dir by hand; without it, the command says which. Nothing is
done for a set that is there already; an interrupted preparation, or one whose
archives cannot be read for a while, goes on after the last file of 5,000 images
that it wrote.
"""

import contextlib
import importlib
import pathlib
import shutil
import sys

from absl import logging

from sjft_jax import command, files, paths
from sjft_jax.data import datasets, tfds_sets
from sjft_jax.errors import UserError

NAMES = (
  'caltech256',
  'imagenet2012',
  'indoor67',
  'oxford_flowers102',
  'places205',
  'places365_small',
  'stanford_dogs',
  'tiny_imagenet',
)


def builder_class(name: str) -> type:
  """The TFDS builder of a set.

  Raises:
    UserError: if there is none.
  """
  if name not in NAMES:
    raise UserError(f'--dataset is one of {", ".join(NAMES)}; {name!r} came.')
  package = f'sjft_jax.data.builders.{name}'
  # Importing TFDS takes half a second: only here.
  return importlib.import_module(f'{package}.{name}_dataset_builder').Builder


def prepare(
  name: str, data_dir, manual_dir, *, digests: bool = True
) -> dict[str, tuple[int, str]]:
  """Prepares a data set, if it is not there already.

  Args:
    name: one of NAMES.
    data_dir: where prepared sets are kept.
    manual_dir: where its archives lie; None = not known.
    digests: whether archives must have the digests that were published.

  Returns:
    {split: (number of images, digest)}, read back from what was written, once:
    later, of the same files, as the user's cache has it.

  Raises:
    UserError: if there is no such set, or an archive is missing, damaged,
      incomplete or another; no file of it is left in data_dir then. If one
      cannot be read now; what was written is kept then. If data_dir cannot be
      made, another process prepares the set there, or what is there is damaged.
  """
  data_dir = paths.on_disk(data_dir, '--data_dir: array_record files')
  if manual_dir is not None:
    manual_dir = paths.on_disk(manual_dir, '--manual_dir: archives')
  with tfds_sets.whole(name, data_dir):
    builder = builder_class(name)(
      data_dir=str(data_dir), file_format='array_record'
    )
  directory = pathlib.Path(builder.data_dir)
  if not builder.is_prepared():
    if directory.exists():
      raise tfds_sets.damaged(name, directory, 'without dataset_info.json')
    need = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if manual_dir is None or not any(manual_dir.glob('*')):
      came = 'none was given'
      if manual_dir is not None:
        came = f'{manual_dir} is empty or does not exist'
      raise UserError(
        f'--manual_dir needs a directory with the archives; {came}. {need}'
      )
    with _alone(directory.parent):
      # Another process may have been ready between the two looks.
      if not builder.is_prepared():
        _write(builder, manual_dir, digests)
  found = {}
  for split in builder.COUNTS:
    spec = {'kind': 'tfds', 'name': name, 'dir': str(data_dir), 'split': split}
    pool = datasets.open_pool({name: spec})
    found[split] = len(pool), pool.digest
  counts = {split: count for split, (count, _) in found.items()}
  if counts != dict(builder.COUNTS):
    raise UserError(
      f'{name} needs {dict(builder.COUNTS)} images; {builder.data_dir} holds'
      f' {counts}: remove it and prepare it again.'
    )
  return found


@contextlib.contextmanager
def _alone(directory):
  """Makes the directory of a set, and keeps other processes out of it."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f'--data_dir needs a directory, or a place where one can be made;'
      f' {directory} cannot be made ({e.strerror}): name another.'
    ) from e
  busy = (
    f'Another prepare is at work on {directory}: wait for it, or stop it. Then'
    ' give the command again.'
  )
  # Of this machine; two that write the same files would spoil both.
  with files.locked(directory, busy):
    yield


def _write(builder, manual_dir, digests):
  """Writes the set beside where it belongs, and renames it when it is whole."""
  from sjft_jax.data import recorded
  from sjft_jax.data.builders import archives

  directory = pathlib.Path(builder.data_dir)
  beside = directory.with_name(f'.{directory.name}.part')
  begun = beside / 'begun.json'
  # What was written goes with these archives, and with no others.
  with archives.reading(manual_dir):
    stats = {
      path.name: path.stat()
      for path in sorted(manual_dir.iterdir())
      if path.is_file() and path.name in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    }
  key = {
    'archives': {k: [s.st_size, s.st_mtime_ns] for k, s in stats.items()},
    'images in a file': recorded.PER_SHARD,
    'digests': digests,
  }
  # What was checked need not be checked again, what was not must be.
  same = key, key | {'digests': True}
  old = files.read_json(begun) if begun.exists() else {'archives': {}}
  # One that is away for a while does not make the others another set.
  archives.find(manual_dir, *old['archives'])
  if old in same:
    print(
      f'Going on with {directory}: images that an earlier start wrote are read '
      'in the archives again, but not written.',
      flush=True,
    )
  else:
    shutil.rmtree(beside, ignore_errors=True)
    for archive, digest in builder.DIGESTS.items() if digests else ():
      if archive in stats:
        archives.check_digest(manual_dir / archive, digest)
    files.write_json(begun, key)
  try:
    infos = [
      recorded.write_split(
        beside,
        builder.name,
        split,
        builder.info.features,
        (example for _, example in examples),
        builder.COUNTS[split],
      )
      for split, examples in builder.splits(manual_dir).items()
    ]
  except paths.Unreadable:
    raise  # The archives are not void, nor what was written of them.
  except UserError:
    shutil.rmtree(beside, ignore_errors=True)
    raise
  recorded.write_metadata(
    beside,
    builder.info.features,
    infos,
    version=str(builder.version),
    description=builder.__doc__,
    homepage=builder.info.homepage,
    citation=builder.info.citation,
    supervised_keys=('image', 'label'),
  )
  # In this order: without it, a start after a kill would remove all.
  beside.rename(directory)
  (directory / begun.name).unlink()


def _work(argv):
  parser = command.parser('prepare', __doc__)
  parser.add_argument('--dataset', required=True, help=', '.join(NAMES))
  parser.add_argument(
    '--data_dir', required=True, help='where prepared sets are kept'
  )
  parser.add_argument(
    '--manual_dir',
    help='where you put the archives; left out, the command says which',
  )
  parser.add_argument(
    '--skip_digests',
    action='store_true',
    help='take archives that are not the published files',
  )
  args = parser.parse_args(argv[1:])
  # TFDS warns of a set that is not there yet.
  logging.set_verbosity(logging.ERROR)
  found = prepare(
    args.dataset, args.data_dir, args.manual_dir, digests=not args.skip_digests
  )
  for split, (count, digest) in found.items():
    print(f'{args.dataset} {split}: {count} images, digest {digest[:16]}')


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv, interrupted=command.GOES_ON))
