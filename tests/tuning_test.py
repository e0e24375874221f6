"""Tuning opens no test image: what it reads is watched, at small size."""

import os
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from sjft_jax import arms, learn, mesh, tuning
from sjft_jax.data import datasets
from sjft_jax.report import pages
from tests import digits, small

OPENED = []  # names of files, while a test watches
WATCHED = []  # directories whose files are noted


def _watch(event, arguments):
  # A file may also be opened by its number.
  if event == 'open' and WATCHED and not isinstance(arguments[0], int):
    name = os.fsdecode(arguments[0])
    OPENED.extend([name] * name.startswith(tuple(WATCHED)))


# There is no way to take it away again; it does nothing without WATCHED.
sys.addaudithook(_watch)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('digits')
  digits.write(root, train=(0, 150), test=(150, 250), source=(250, 330))
  return root


@pytest.fixture
def opened(folder, monkeypatch):
  """Names of the target's files opened so far, relative to the folder."""
  OPENED.clear()
  monkeypatch.setattr(
    f'{__name__}.WATCHED', [f'{folder}/train', f'{folder}/test']
  )

  def names():
    return {os.path.relpath(name, folder) for name in OPENED}

  return names


class Reader(learn.Learner):
  """Reads what it is asked about, and does not compute anything."""

  def start(self, pool, directory, donors=()):
    """Needs no weights."""

  def fine_tune(self, start, weights, target, *others):
    self._read(target)

  def posteriors(self, variables, dataset, views, label):
    self._read(dataset)
    return np.full((len(dataset), 4), 0.25, np.float32)

  def _read(self, dataset):
    for i in range(len(dataset)):
      dataset.read(i)


def settings(folder):
  """Three images a class; K0, bank and the source's weight are chosen."""
  c = default.get_config()
  c.target.train, c.target.test = str(folder / 'train'), str(folder / 'test')
  c.target.per_class = 3
  c.source.main.dir = str(folder / 'source')
  c.max_bad_fraction = 0.1
  c.describe.resize = c.describe.crop = 16
  c.budget.initial, c.budget.maximum = 4, 8
  c.suspects.neighbours = 0
  c.model.trunk = 'squeezenet_v1_0'
  c.train.resize = c.train.crop = 24
  c.train.micro_batches, c.train.target_batch, c.train.source_batch = 1, 4, 4
  c.optim.schedule, c.rounds, c.fusion = 'cosine', 1, False
  c.tune.folds, c.tune.steps, c.tune.learning_rates = 2, (1,), (0.01,)
  c.tune.initial, c.tune.source_weights = (4, 2), (1.0, 0.3)
  with c.unlocked():
    c.tune.banks = dict(coarse=dict(bins=4), fine=dict(bins=8))
  c.seeds, c.arms = 2, ConfigDict(dict(selective=dict(title='Selective')))
  return c


def test_no_test_image_is_opened(folder, opened, tmp_path, monkeypatch):
  monkeypatch.setattr(learn, 'Learner', Reader)
  small.bank(monkeypatch.setattr)
  # Pages are of what was found, and take longer than all else here.
  monkeypatch.setattr(pages, 'write_run', lambda *arguments: None)
  c = settings(folder)
  own = arms.settings_of(c, 'selective', 0)
  arms.check(c)
  found = tuning.tune(
    c, 'selective', own, tmp_path, mesh.make(jax.devices()[:1]), []
  )
  assert len(found['tried']) == 4
  seen = opened()
  # Nothing of the test folder, and nothing that the draw has left, which would
  # be the test set if no folder were named.
  train, test = datasets.open_target(c.target, 0)
  assert len(test) > 20
  assert seen == {name.removeprefix('target:') for name in train.ids.tolist()}
