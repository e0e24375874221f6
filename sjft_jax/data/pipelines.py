"""Streams of crops: ordered sweeps, and joint batches of target and source.

Images are read and decoded by threads (grain), a bounded number ahead. What
comes out depends on the arguments alone, never on the number of threads.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from sjft_jax import errors, machine, paths
from sjft_jax.data import preprocess
from sjft_jax.data.dataset import Dataset

# Images a thread takes at a time in a sweep: handing over single small images
# costs more than decoding them.
_CHUNK = 32
_REDRAWS = 100


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Block:
  """Consecutive images of a set.

  Attributes:
    index: positions in the set, int64 [b]; -1 is padding.
    image: RGB, uint8 [b, crop, crop, 3], or [b, v, crop, crop, 3] of several
      views; 0 where not valid.
    valid: bool [b]; False for padding and for bad images.
    bad: (position, reason) of each bad image.
  """

  index: np.ndarray
  image: np.ndarray
  valid: np.ndarray
  bad: list[tuple[int, str]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
  """Which source images each target image may draw.

  Target image i draws uniformly from index[start[i]:stop[i]]; target images may
  share a list.

  Attributes:
    index: positions in the source, int64 [m].
    start: int64 [q].
    stop: int64 [q].
  """

  index: np.ndarray
  start: np.ndarray
  stop: np.ndarray


# --- Sweeps -------------------------------------------------------------------


def sweep(
  dataset: Dataset,
  *,
  resize: int,
  crop: int,
  batch: int,
  threads: int,
  cut: Callable[[np.ndarray, int], np.ndarray] = preprocess.center_crop,
  reduced: bool = False,
) -> Iterator[Block]:
  """Yields every image once, in order, as centre crops or as `cut` has them.

  Args:
    dataset: the images.
    resize: side in pixels that images are resized to, aspect not kept.
    crop: side in pixels of a crop.
    batch: images per block; the last block is padded.
    threads: that decode; 0 = one per CPU.
    cut: (uint8 [resize, resize, 3], crop) -> what a block holds of the image.
    reduced: decode a JPEG at a part of its size, if that is enough; faster, and
      not quite the same pixels.

  Yields:
    Blocks; an image that cannot be decoded or read is masked and listed.
  """

  def load(i: int):
    try:
      image = _image(dataset, i, resize, reduced)
    except preprocess.BadImage as e:
      return i, None, str(e)
    return i, cut(image, crop), ''

  shape = cut(np.zeros((resize, resize, 3), np.uint8), crop).shape

  for images in _batched(each(dataset, load, threads), batch):
    block = Block(
      index=np.full(batch, -1, np.int64),
      image=np.zeros((batch, *shape), np.uint8),
      valid=np.zeros(batch, bool),
      bad=[(i, reason) for i, image, reason in images if image is None],
    )
    for row, (i, image, _) in enumerate(images):
      block.index[row] = i
      if image is not None:
        block.image[row] = image
        block.valid[row] = True
    yield block


def find_bad(
  dataset: Dataset, threads: int
) -> Iterator[tuple[int, str | None]]:
  """Decodes every image once, in order.

  Args:
    dataset: the images.
    threads: that decode; 0 = one per CPU.

  Yields:
    (position, reason) for each image; the reason is None where it is good.
  """

  def check(i: int):
    try:
      _decode(dataset, i)
    except preprocess.BadImage as e:
      return i, str(e)
    return i, None

  return each(dataset, check, threads)


def each(
  dataset: Dataset,
  function: Callable[[int], Any],
  threads: int,
  start: int = 0,
  stop: int | None = None,
) -> Iterator:
  """Applies a function to positions of a set, in threads.

  Args:
    dataset: the images.
    function: position -> anything; called in threads.
    threads: how many; 0 = one per CPU.
    start: first position.
    stop: position to stop before; None = all.

  Yields:
    The results, in order; a bounded number is made ahead.
  """
  stop = len(dataset) if stop is None else stop
  positions = grain.MapDataset.range(start, stop).map(function)
  chunks = positions.batch(_CHUNK, batch_fn=list)
  with contextlib.closing(_stream(chunks, threads, ahead=8)) as chunks:
    yield from itertools.chain.from_iterable(chunks)


def _batched(items: Iterator, size: int) -> Iterator[list]:
  while batch := list(itertools.islice(items, size)):
    yield batch


def _stream(items: grain.MapDataset, threads: int, ahead: int) -> Iterator:
  """Items in order, made by threads, at most about `ahead` before their use."""
  threads = threads or machine.cores()
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, ahead)
  )
  # Leaving the loop early stops the threads.
  with contextlib.closing(iter(items.to_iter_dataset(options))) as items:
    yield from items


def refuse_transient(name, reason: str) -> None:
  """Refuses to go on without an image that a later start might read.

  Args:
    name: id of the image.
    reason: why it is bad, as `find_bad` and `sweep` say it.

  Raises:
    UserError: if another attempt to read it may succeed.
  """
  if paths.may_pass(reason):
    raise errors.UserError(
      f'{name}: {reason}. Give yourself the right to read it, or look after '
      'its disk, then give the same command again.'
    )


def _decode(dataset: Dataset, i: int, least: int | None = None) -> np.ndarray:
  try:
    return preprocess.decode(dataset.read(i), least=least)
  except OSError as e:
    raise preprocess.BadImage(paths.why(e)) from e


def _image(
  dataset: Dataset, i: int, resize: int, reduced: bool = False
) -> np.ndarray:
  image = _decode(dataset, i, least=resize if reduced else None)
  return preprocess.resize(image, resize)


# --- Joint batches ------------------------------------------------------------


def joint(
  target: Dataset | None,
  source: Dataset | None,
  candidates: Candidates | None,
  *,
  seed: int | tuple[int, ...],
  steps: int,
  first_step: int = 0,
  micro_batches: int,
  target_batch: int,
  source_batch: int,
  process: int = 0,
  processes: int = 1,
  resize: int,
  crop: int,
  mirror: bool,
  threads: int,
  level_q: np.ndarray | None = None,
  most_per_label: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of randomly cropped target and source images.

  The target is shuffled anew every epoch and each image comes once per epoch,
  or as often as its level says. Where `most_per_label` replaces images, those
  miss their turn.
  Example j of the source half is drawn uniformly from the candidates of example
  j of the target half. With target_batch 0 it is drawn uniformly from the whole
  source; with source_batch 0 there is no source half.

  Every draw is a function of the seed and the example's number since step 0, so
  that first_step = k gives what a run from 0 gives from step k on. A source
  image that turns out bad is drawn again; one that cannot be read now is
  refused, or the draws would depend on the disk.

  Args:
    target: the labelled images; unused if target_batch is 0.
    source: the pool; unused if source_batch is 0.
    candidates: for every target image; None unless both halves are there.
    seed: of every random choice; one number or several.
    steps: the number of the step to stop before.
    first_step: the number of the step to begin with.
    micro_batches: m, micro-batches in a step.
    target_batch: bt, target images in a micro-batch.
    source_batch: bs, source images in a micro-batch; bt if both are positive.
    process: which of the equal parts of each micro-batch to make, from 0: those
      of all processes, one after the other, are the whole micro-batch.
    processes: how many parts there are; they must divide bt and bs. The shapes
      below are those of a part.
    resize: side in pixels that images are resized to, aspect not kept.
    crop: side in pixels of the random crop.
    mirror: whether to mirror half of the images, at random.
    threads: that decode; 0 = one per CPU.
    level_q: how often each target image comes in an epoch, int [q], positive;
      None = once.
    most_per_label: images of one label in the target half of a micro-batch;
      what is beyond gives way to random images of the labels that the half has
      fewest of, absent ones first. 0 = any number.

  Returns:
    Iterator of dicts: target_image uint8 [m, bt, crop, crop, 3], target_label
    int32 [m, bt], target_index int64 [m, bt] (position in `target`), and the
    same for source.

  Raises:
    ValueError: if the batch sizes, the candidates or the levels do not fit, or
      if the target has too few labels for `most_per_label`.
    UserError: while iterating, if an image cannot be read now, if a target
      image is bad, or if 100 draws of a source image all are.
  """
  if not (target_batch == source_batch or 0 in (target_batch, source_batch)):
    raise ValueError(
      f'The halves must pair up: {target_batch=}, {source_batch=}.'
    )
  batch = max(target_batch, source_batch)
  if batch < 1 or micro_batches < 1:
    raise ValueError(f'A step needs images: {batch=}, {micro_batches=}.')
  if not 0 <= process < processes or batch % processes:
    raise ValueError(
      f'Processes make equal parts: {process=}, {processes=}, {batch=}.'
    )
  if target_batch and source_batch:
    _check(candidates, len(target), len(source))

  def cut(dataset, i, rng):
    image = preprocess.random_crop(_image(dataset, i, resize), crop, rng)
    if mirror and rng.random() < 0.5:
      image = preprocess.mirror(image)
    return image

  def draw_source(i: int | None, rng):
    for _ in range(_REDRAWS):
      if target_batch:
        j = candidates.index[
          rng.integers(candidates.start[i], candidates.stop[i])
        ]
      else:
        j = rng.integers(len(source))
      try:
        return int(j), cut(source, int(j), rng)
      except preprocess.BadImage as e:
        refuse_transient(source.ids[j], str(e))
        last = f'{source.ids[j]}: {e}'
    whose = f' for {target.ids[i]}' if target_batch else ''
    raise errors.UserError(
      f'Needed a readable source image{whose}; {_REDRAWS} draws met bad ones '
      f'only, the last {last}. Restore them, and give the same command again.'
    )

  # Plain seeds would give run s + 1 what run s draws an epoch later.
  order_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2)
  if target_batch:
    half_of = _target_halves(
      target, target_batch, int(order_seed), level_q, most_per_label
    )

  def example(number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    halves, i = {}, None
    if target_batch:
      micro, at = divmod(number, target_batch)
      i = int(half_of(micro)[at])
      try:
        halves |= _half('target', target, i, cut(target, i, rng))
      except preprocess.BadImage as e:
        refuse_transient(target.ids[i], str(e))
        raise errors.UserError(
          f'{target.ids[i]}: {e}. It could be read when the run began; restore '
          'it, and give the same command again.'
        ) from e
    if source_batch:
      halves |= _half('source', source, *draw_source(i, rng))
    return halves

  numbers = grain.MapDataset.range(steps * micro_batches * batch)
  examples = numbers.random_map(example, seed=int(draw_seed))
  # Sliced last: earlier, the draws would depend on where the slice begins, and
  # on the number of processes.
  first, stop = (n * micro_batches * processes for n in (first_step, steps))
  micro = examples.batch(batch // processes).slice(
    slice(first + process, stop, processes)
  )
  absent = {}
  if not target_batch:
    absent |= _no_half('target', micro_batches, crop)
  if not source_batch:
    absent |= _no_half('source', micro_batches, crop)
  return _steps(
    _stream(micro, threads, 2 * micro_batches), micro_batches, absent
  )


def _target_halves(target, size, seed, level_q, most_per_label):
  """Function of a micro-batch's number to its target images, int64 [size]."""
  level_q = np.ones(len(target), int) if level_q is None else level_q
  if level_q.shape != (len(target),) or level_q.min() < 1:
    raise ValueError(
      f'A level of 1 or more per target image: {level_q.shape=},'
      f' {level_q.min()=}, {len(target)=}.'
    )
  turns = np.repeat(np.arange(len(target)), level_q)
  labels = np.unique(target.labels)
  if 0 < most_per_label * len(labels) < size:
    raise ValueError(
      f'Too few labels to fill the half: {most_per_label=}, {len(labels)=},'
      f' {size=}.'
    )

  # Not grain's shuffle: on 50 images it takes 0.9 ms for each.
  @functools.lru_cache(maxsize=16)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(turns)

  @functools.lru_cache(maxsize=256)
  def half(micro: int) -> np.ndarray:
    index = np.empty(size, np.int64)
    for at in range(size):
      epoch, turn = divmod(micro * size + at, len(turns))
      index[at] = order(epoch)[turn]
    if most_per_label:
      rng = np.random.default_rng([seed, micro, most_per_label])
      _spread(index, target.labels, labels, most_per_label, rng)
    return index

  return half


def _spread(index, label_q, labels, most, rng) -> None:
  """Replaces, in place, images of labels that occur more than `most` times."""
  counts = {
    label: int((label_q[index] == label).sum()) for label in labels.tolist()
  }
  for at in reversed(range(len(index))):
    label = int(label_q[index[at]])
    if counts[label] > most:
      fewest = min(counts.values())
      rare = [name for name, count in counts.items() if count == fewest]
      new = rare[rng.integers(len(rare))]
      index[at] = rng.choice(np.flatnonzero(label_q == new))
      counts[label] -= 1
      counts[new] += 1


def _steps(stream, micro_batches, absent) -> Iterator[dict[str, np.ndarray]]:
  with contextlib.closing(stream):
    for micro in _batched(stream, micro_batches):
      yield absent | {k: np.stack([m[k] for m in micro]) for k in micro[0]}


def _half(name, dataset, i, image) -> dict[str, np.ndarray]:
  return {
    f'{name}_image': image,
    f'{name}_label': dataset.labels[i],
    f'{name}_index': np.int64(i),
  }


def _no_half(name, micro_batches, crop) -> dict[str, np.ndarray]:
  return {
    f'{name}_image': np.zeros((micro_batches, 0, crop, crop, 3), np.uint8),
    f'{name}_label': np.zeros((micro_batches, 0), np.int32),
    f'{name}_index': np.zeros((micro_batches, 0), np.int64),
  }


def _check(candidates: Candidates, targets: int, sources: int) -> None:
  index, start, stop = candidates.index, candidates.start, candidates.stop
  if start.shape != (targets,) or stop.shape != (targets,):
    raise ValueError(
      f'One list per target image: {targets=}, {start.shape=}, {stop.shape=}.'
    )
  if (stop <= start).any() or start.min() < 0 or stop.max() > len(index):
    raise ValueError(
      f'Every target image needs a candidate: {(stop - start).min()=},'
      f' {start.min()=}, {stop.max()=}, {index.shape=}.'
    )
  if index.min() < 0 or index.max() >= sources:
    raise ValueError(
      f'Candidates are source positions: {index.min()=}, {index.max()=},'
      f' {sources=}.'
    )
