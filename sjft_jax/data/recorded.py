"""Writes data sets as TFDS reads them, without TensorFlow.

A set is a directory of array_record files, so many examples in each, in the
order in which they come, beside what TFDS calls metadata.
"""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax import progress

PER_SHARD = 5_000  # examples
# Encoded images do not become smaller, and writing takes a quarter of the time.
_OPTIONS = 'group_size:1,uncompressed'


def write_split(
  directory,
  name: str,
  split: str,
  features: tfds.features.FeaturesDict,
  examples: Iterable[Mapping[str, Any]],
  count: int,
) -> tfds.core.SplitInfo:
  """Writes a split; files of it that are there already are passed over.

  Args:
    directory: of the set.
    name: of the set.
    split: its name.
    features: that encode the examples.
    examples: the same ones in the same order as when the files there were
      written. All are taken, so that a generator can check its end.
    count: how many they are.

  Returns:
    What `write_metadata` wants to know of it.

  Raises:
    ValueError: if they are more or fewer.
  """
  from array_record.python import array_record_module  # No wheel for Windows.

  template = tfds.core.ShardedFileTemplate(
    data_dir=directory,
    dataset_name=name,
    split=split,
    filetype_suffix='array_record',
  )
  paths = template.sharded_filepaths(max(1, -(-count // PER_SHARD)))
  rest, lengths = iter(examples), []
  with progress.bar(count, f'{name} {split}') as bar:
    for path in paths:
      lengths.append(0)
      block = itertools.islice(rest, PER_SHARD)
      beside = path.with_name(f'.{path.name}.part')
      written = path.exists()
      if not written:
        writer = array_record_module.ArrayRecordWriter(str(beside), _OPTIONS)
      for example in block:
        if not written:
          writer.write(features.serialize_example(example))
        lengths[-1] += 1
        bar.update()
      if not written:
        writer.close()
        # After a power cut a name must not stand without its content.
        with open(beside, 'rb+') as file:
          os.fsync(file.fileno())
        os.replace(beside, path)
  came = sum(lengths) + sum(1 for _ in rest)
  if came != count:
    raise ValueError(f'{count} examples were announced, {came} came.')
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=sum(path.stat().length for path in paths),
    filename_template=template,
  )


def write_metadata(directory, features, splits, **about) -> None:
  """Makes a directory of splits one that `tfds.builder_from_directory` reads.

  Args:
    directory: of the set.
    features: that encoded the examples.
    splits: what `write_split` returned.
    **about: version, description, homepage, citation, ... of the set.
  """
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=features,
    split_infos=splits,
    check_data=False,  # It would take TensorFlow.
    **about,
  )
