"""Numbers of training: JSON lines for programs, TensorBoard for people."""

import contextlib
import json
import pathlib
from collections.abc import Mapping

import tensorboardX

from sjft_jax import files, paths, processes

_NAME = 'metrics.jsonl'


class Writer:
  """Appends the numbers of one stage; a context manager, called to write.

  Lines of `metrics.jsonl` are {"round": m, "step": n, name: number, ...}. Each
  stage is a run of its own in `tensorboard/`, so that rounds can be compared.
  Only process 0 writes. A store has no files that grow: they grow on the disk,
  and `sync` and `close` put them there.

  Args:
    workdir: of the run.
    label: what TensorBoard calls the stage.
    number: `round` of its lines, larger than in stages before.
    step: updates of the stage that are done. What an interrupted run wrote
      beyond them is removed.
  """

  def __init__(
    self,
    workdir: str | pathlib.PurePath,
    label: str,
    number: int,
    step: int = 0,
  ):
    self._number = number
    self._workdir = paths.path(workdir)
    self._stack = contextlib.ExitStack()
    self._lines = self._board = None
    if processes.first():
      self._here = self._workdir
      if paths.in_store(self._workdir):
        self._here = self._stack.enter_context(files.scratch())
        if (self._workdir / _NAME).exists():
          paths.get([(self._workdir / _NAME, self._here / _NAME)])
      path = self._here / _NAME
      _keep_until(path, (number, step))
      self._lines = open(path, 'a', encoding='utf-8')  # noqa: SIM115
      self._board = tensorboardX.SummaryWriter(
        str(self._here / 'tensorboard' / label), purge_step=step + 1
      )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def __call__(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line.

    Args:
      step: updates of the round done.
      values: name -> finite number.
    """
    if self._lines:
      line = {'round': self._number, 'step': step} | {
        name: float(f'{value:.6g}') for name, value in values.items()
      }
      self._lines.write(json.dumps(line, allow_nan=False) + '\n')
      self._lines.flush()
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def sync(self) -> None:
    """Sees to it that a kill takes none of the lines written so far."""
    if self._lines and self._here != self._workdir:
      self._board.flush()
      self._put()

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._lines:
      with self._stack:
        self._lines.close()
        self._board.close()
        if self._here != self._workdir:
          self._put()

  def _put(self):
    names = [name for name, _ in paths.below(self._here)]
    paths.put([(self._here / name, self._workdir / name) for name in names])


def _keep_until(path, last: tuple[int, int]) -> None:
  """Removes lines beyond (round, step), and a last one cut by a kill."""
  lines = path.read_text('utf-8').splitlines(True) if path.exists() else []
  kept = [line for line in lines if line.endswith('\n') and _key(line) <= last]
  if len(kept) < len(lines):
    with files.replacing(path, 'w') as file:
      file.writelines(kept)


def _key(line):
  values = json.loads(line)
  return values['round'], values['step']
