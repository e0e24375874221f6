"""What the filters add to a distance, and which pairs are explained."""

import numpy as np
import pytest

from sjft_jax import describe, reasons, tables
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError
from sjft_jax.ops import divergence
from tests import described

CHANNELS, BINS, PIXELS = 3, 8, 60


class Describer(described.Describer):
  """Counts that were drawn instead of images: its sets read them by id."""

  bins = BINS

  def __init__(self, counts, broken=()):
    super().__init__(BINS, PIXELS, CHANNELS)
    self.counts, self.broken = counts, broken
    self.bank = describe.Bank(
      responses=None,
      layer_c=np.zeros(CHANNELS, np.int32),
      names=('a', 'b', 'c'),
      resize=8,
      crop=8,
    )

  def blocks(self, dataset, rows):
    good = [i for i, n in enumerate(dataset.ids) if n not in self.broken]
    yield describe.Block(
      index_n=np.array(good),
      counts_nd=np.stack([self.counts[dataset.ids[i]] for i in good]),
      stop=len(dataset),
      bad=[],
    )


def dataset(name, labels):
  return Dataset(
    name=name,
    classes=('x', 'y'),
    ids=np.array([f'{name}:{i:02d}' for i in range(len(labels))]),
    labels=np.asarray(labels, np.int32),
    sizes=np.zeros(len(labels), np.int64),
    read=None,
  )


@pytest.fixture
def sets():
  target, source = dataset('t', [0, 0, 1, 1]), dataset('s', [0] * 50)
  rng = np.random.default_rng(0)
  drawn = described.counts(rng, 54, CHANNELS, BINS, PIXELS)
  names = [*target.ids, *source.ids]
  describer = Describer(dict(zip(names, drawn, strict=True)))
  distance_qs = divergence.pairwise_jeffreys(
    *(describer.fractions(drawn[part]) for part in (slice(4), slice(4, None))),
    describer.weight_d,
  )
  index_qk = np.argsort(distance_qs, axis=1)[:, :45]
  distance_qk = np.take_along_axis(np.asarray(distance_qs), index_qk, axis=1)
  return describer, target, source, tables.Table(distance_qk, index_qk)


def test_filters_add_up_to_the_distance(sets):
  describer, target, source, table = sets
  found = reasons.explained(table, target, source, describer)
  assert found['filters'] == ['a', 'b', 'c']
  # Of three targets spread over the classes, the nearest and the 40th.
  assert [(p['target_id'], p['rank']) for p in found['pairs']] == [
    (f't:{q:02d}', rank) for q in (0, 2, 1) for rank in (0, 39)
  ]
  for pair in found['pairs']:
    row = int(pair['target_id'][2:])
    at = table.index_qk[row, pair['rank']]
    assert pair['source_id'] == source.ids[at]
    assert min(pair['nats']) >= 0
    np.testing.assert_allclose(sum(pair['nats']), pair['distance'], rtol=1e-3)
    np.testing.assert_allclose(
      sum(pair['usual']), pair['usual_distance'], rtol=1e-3
    )
    assert pair['usual_distance'] > pair['distance'] or pair['rank']


def test_what_cannot_be_read_is_not_usual(sets):
  describer, target, source, table = sets
  whole = reasons.explained(table, target, source, describer)
  # One of the evenly spread images that is no neighbour asked about.
  evenly = np.linspace(0, 49, 16).astype(int)
  asked = {pair['source_id'] for pair in whole['pairs']}
  broken = next(source.ids[i] for i in evenly if source.ids[i] not in asked)
  describer.broken = {broken}
  part = reasons.explained(table, target, source, describer)
  for one, other in zip(whole['pairs'], part['pairs'], strict=True):
    assert one['nats'] == other['nats']
    assert one['usual_distance'] != other['usual_distance']


def test_a_pair_that_cannot_be_read_any_more_is_refused(sets):
  describer, target, source, table = sets
  for lost in (source.ids[table.index_qk[0, 0]], target.ids[0]):
    describer.broken = {lost}
    with pytest.raises(UserError, match=f'{lost} was searched and cannot'):
      reasons.explained(table, target, source, describer)
