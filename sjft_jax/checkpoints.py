"""Checkpoints of a training state and of what goes with it."""

import contextlib
import functools
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sjft_jax import packed, paths, processes
from sjft_jax.errors import UserError


class Checkpoints:
  """The last checkpoints in a directory; a context manager.

  Processes that work together share them: each writes what its devices hold,
  and another number of processes can go on. Saving goes on in the background
  and leaves a checkpoint that is whole or absent. Leaving the context waits for
  it. In a store, one process writes all of them, each as one object.

  Args:
    directory: made if needed.
    keep: how many of the last checkpoints stay.
  """

  def __init__(self, directory: str | pathlib.PurePath, *, keep: int = 1):
    directory = paths.path(directory)
    self._packed, here, own = None, directory, None
    if paths.in_store(directory):
      self._packed = packed.Packed(directory, keep=keep)
      here = self._packed.here
      own = jax.process_index()
    self._manager = ocp.CheckpointManager(
      here.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=own is None,
        cleanup_tmp_directories=True,
        # What is put into a store in the background must be whole before.
        enable_async_checkpointing=own is None,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=own or 0,
          active_processes=None if own is None else {own},
          barrier_sync_key_prefix=None if own is None else f'own{own}',
        ),
      ),
      item_names=('state', 'meta'),
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    with contextlib.ExitStack() as stack:
      if self._packed:
        stack.enter_context(contextlib.closing(self._packed))
      with self._needing_room():
        self._manager.close()

  @property
  def step(self) -> int | None:
    """The step of the latest checkpoint, or None; asked by all processes."""
    where = self._packed or self._manager
    return processes.told(where.latest_step)

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Saves in the background; the state may be donated at once.

    Args:
      step: updates done, more than at the last checkpoint.
      state: pytree of arrays.
      meta: what else to keep, as JSON.

    Raises:
      ValueError: if there is a checkpoint of this step or of a later one.
      UserError: if the disk is full, now or at the save before.
    """
    # Orbax would return False and save nothing.
    last = self.step
    if last is not None and step <= last:
      raise ValueError(f'Steps grow: {step=} after {last=}.')
    # Asked first: the writers' many threads fail with a traceback each.
    need = 1.1 * sum(x.nbytes for x in jax.tree.leaves(state)) + 2**20
    if self._packed:
      need *= 3  # the one before, this one, and this one packed
      state = jax.tree.map(_whole, state)
      self._packed.wait()
    processes.told(functools.partial(self._ask_for_room, need))
    if self._packed and not processes.first():
      return
    with self._needing_room():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
      )
    if self._packed:
      self._packed.send(step)

  def restore(self, state: Any) -> tuple[Any, dict]:
    """Reads the latest checkpoint.

    Args:
      state: what was saved, or `ShapeDtypeStruct`s, with the shapes, dtypes
        and shardings to restore to; its values do not matter.

    Returns:
      (state, meta) of the latest checkpoint.

    Raises:
      ValueError: if there is none.
    """
    step = self.step
    if step is None:
      raise ValueError(f'No checkpoint in {self._manager.directory}.')
    if self._packed:
      self._packed.fetch(step)
      self._manager.reload()
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        ),
        meta=ocp.args.JsonRestore(),
      ),
    )
    return restored.state, restored.meta

  def _ask_for_room(self, need):
    if shutil.disk_usage(self._manager.directory).free < need:
      raise self._full()

  @contextlib.contextmanager
  def _needing_room(self):
    """Says in one line that the disk is full."""
    try:
      yield
    except (OSError, ValueError) as e:
      # Orbax passes on what the writer of arrays says as a ValueError.
      if 'No space left on device' not in str(e):
        raise
      raise self._full() from e

  def _full(self):
    return UserError(
      'The disk is full: no checkpoint could be saved in '
      f'{self._manager.directory}, the one before is whole. Make room and '
      'give the same command again.'
    )


def _whole(x):
  """An array as NumPy, whole in every process."""
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
