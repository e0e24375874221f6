"""What a run refuses before it has worked, not hours later."""

import numpy as np

from sjft_jax import (
  describe,
  exact,
  files,
  learn,
  processes,
  screen,
  selection,
)
from sjft_jax import mesh as meshes
from sjft_jax.errors import UserError
from sjft_jax.models import weight_files


def check(c, target, test, mesh, workdir):
  """Refuses what the target, the devices or the network cannot do.

  Args:
    c: every setting.
    target: the target training images.
    test: the target test images.
    mesh: the devices.
    workdir: directory of the run.

  Raises:
    UserError: in one line.
  """
  # For what these two refuse: the search, which needs what they return, comes
  # after the guard.
  exact.cpu()
  screen.grid(meshes.own(mesh), c.search.target_parts)
  check_files(c)
  if processes.count() > 1:
    # They may lie on the disks of several machines.
    used = []
    if selection.RULES[c.selection].searched == 'descriptors':
      used.append(c.describe.edges)
      used.append(c.describe.weights if c.describe.bank == 'conv' else '')
    if c.rounds or c.selection == 'features':
      used.append(c.model.weights)
    digests = [name and files.digest(name) for name in used]
    processes.agree(digests, 'weight files and edges')
  if c.rounds:
    learn.check(c, mesh, workdir)
  if c.rounds and len(target) < c.train.target_batch:
    raise UserError(
      f'A batch takes train.target_batch={c.train.target_batch} different '
      f'target images; there are {len(target)}. Lower it and '
      'train.source_batch to the same number, or add images.'
    )
  if c.rounds and len(target.classes) < 2:
    raise UserError(
      f'The target needs two classes or more; there is {target.classes[0]} '
      'alone. target.train is the folder that holds the class folders.'
    )
  classes, most = len(np.unique(target.labels)), c.train.most_per_label
  if c.rounds and 0 < most * classes < c.train.target_batch:
    raise UserError(
      f'train.most_per_label={most} images of each of {classes} classes do not '
      f'fill train.target_batch={c.train.target_batch}. Lower that, or raise '
      'train.most_per_label.'
    )
  fewest = min(len(target), len(test) if c.rounds else len(target))
  if fewest < processes.count():
    raise UserError(
      f'Every process reads a share of the target images; {fewest} are too few '
      f'for {processes.count()} processes. Start fewer.'
    )
  check_devices(c, mesh)


def check_devices(c, mesh):
  """Refuses batches that the devices cannot share.

  Args:
    c: every setting.
    mesh: the devices.

  Raises:
    UserError: in one line.
  """
  batches = {}
  if c.rounds:
    batches['train.target_batch'] = c.train.target_batch
    if c.selection != 'none':
      batches['train.source_batch'] = c.train.source_batch
    if c.pretrain.steps:
      batches['pretrain.batch'] = c.pretrain.batch
  for name, images in batches.items():
    if images % mesh.size:
      raise UserError(
        f'{name} must be a multiple of the number of devices, {mesh.size}; '
        f'came {images}.'
      )


def check_files(c):
  """Refuses descriptors and weights that cannot be read.

  Args:
    c: every setting.

  Raises:
    UserError: in one line.
  """
  # They are read again where they are used, hours later.
  if selection.RULES[c.selection].searched == 'descriptors':
    describe.load_bank(c.describe)
    if c.describe.edges:
      # Says so where there is no such file; of what it holds, nothing is asked.
      files.digest(c.describe.edges)
  if c.rounds and c.model.weights:
    weight_files.convention(c.model.weights)
