"""Prepares a data set once: python -m sjft_jax.prepare --dataset=NAME ...

Writes array_record files into --data_dir, which a run then reads with
--config.target.kind=tfds or --config.source.main.kind=tfds. The archives are
put into --manual_dir by hand; without it, the command says which. Nothing is
done for a set that is there already; an interrupted preparation begins anew.
"""

import argparse
import pathlib
import sys

from absl import logging

from sjft_jax import main
from sjft_jax.data import datasets
from sjft_jax.errors import UserError


def builders() -> dict:
  """Name -> TFDS builder of every set that can be prepared."""
  from sjft_jax.data.builders.caltech256 import caltech256_dataset_builder
  from sjft_jax.data.builders.indoor67 import indoor67_dataset_builder
  from sjft_jax.data.builders.places205 import places205_dataset_builder
  from sjft_jax.data.builders.tiny_imagenet import (
    tiny_imagenet_dataset_builder,
  )

  return {
    'caltech256': caltech256_dataset_builder.Builder,
    'indoor67': indoor67_dataset_builder.Builder,
    'places205': places205_dataset_builder.Builder,
    'tiny_imagenet': tiny_imagenet_dataset_builder.Builder,
  }


def prepare(name: str, data_dir, manual_dir) -> dict[str, tuple[int, str]]:
  """Prepares a data set, if it is not there already.

  Args:
    name: a key of `builders`.
    data_dir: where prepared sets are kept.
    manual_dir: where its archives lie; None = not known.

  Returns:
    {split: (number of images, digest)}, read back from what was written.

  Raises:
    UserError: if there is no such set, or an archive is missing, damaged or
      incomplete; nothing is left in data_dir then.
  """
  import tensorflow_datasets as tfds

  known = builders()
  if name not in known:
    raise UserError(f'--dataset is one of {", ".join(known)}; {name!r} came.')
  builder = known[name](data_dir=str(data_dir), file_format='array_record')
  if not builder.is_prepared():
    need = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if manual_dir is None or not any(pathlib.Path(manual_dir).glob('*')):
      came = 'none was given' if manual_dir is None else f'{manual_dir} is not'
      raise UserError(
        f'--manual_dir needs a directory with the archives; {came}. {need}'
      )
    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    try:
      builder.download_and_prepare(download_config=config)
    except Exception as e:
      raise _cause(e) from e
  found = {}
  for split in builder.info.splits:
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


def _cause(error):
  """The UserError that TFDS wrapped, or what it wrapped first."""
  inner = error
  while inner is not None:
    if isinstance(inner, UserError):
      return inner
    inner = inner.__cause__ or inner.__context__
  return error


def _work(argv):
  parser = argparse.ArgumentParser(
    prog='python -m sjft_jax.prepare', description=__doc__.splitlines()[0]
  )
  parser.add_argument('--dataset', required=True)
  parser.add_argument('--data_dir', required=True, type=pathlib.Path)
  parser.add_argument('--manual_dir', type=pathlib.Path)
  args = parser.parse_args(argv[1:])
  # TFDS warns of a set that is not there yet.
  logging.set_verbosity(logging.ERROR)
  found = prepare(args.dataset, args.data_dir, args.manual_dir)
  for split, (count, digest) in found.items():
    print(f'{args.dataset} {split}: {count} images, digest {digest[:16]}')


if __name__ == '__main__':
  sys.exit(main.guarded(_work, sys.argv))
