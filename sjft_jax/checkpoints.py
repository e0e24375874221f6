"""Checkpoints of a training state and of what goes with it."""

import contextlib
import functools
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from sjft_jax import processes
from sjft_jax.errors import UserError


class Checkpoints:
  """The last checkpoints in a directory; a context manager.

  Processes that work together share them: each writes what its devices hold,
  and another number of processes can go on. Saving goes on in the background
  and leaves a checkpoint that is whole or absent. Leaving the context waits for
  it.

  Args:
    directory: made if needed.
    keep: how many of the last checkpoints stay.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int = 1):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
      ),
      item_names=('state', 'meta'),
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    with self._needing_room():
      self._manager.close()

  @property
  def step(self) -> int | None:
    """The step of the latest checkpoint, or None; asked by all processes."""
    return processes.told(self._manager.latest_step)

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
    processes.told(functools.partial(self._ask_for_room, need))
    with self._needing_room():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
      )

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
