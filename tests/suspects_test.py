import csv

import numpy as np
import pytest

from configs import folders
from sjft_jax import suspects
from sjft_jax.data import datasets

K = 5


def clouds(per_class=30, classes=4, seed=0):
  """Features and logits of well separated classes, and their labels."""
  rng = np.random.default_rng(seed)
  label_n = np.repeat(np.arange(classes), per_class)
  feature_nf = 4 * np.eye(classes)[label_n]
  feature_nf += rng.normal(0, 0.3, feature_nf.shape)
  return feature_nf * 2, feature_nf, label_n


def find(logits_nc, feature_nf, label_n, group_c=(0, 0, 0, 0)):
  return suspects.find(logits_nc, feature_nf, label_n, np.array(group_c), K)


def test_planted_labels_are_found_and_named():
  logits_nc, feature_nf, truth_n = clouds()
  label_n = truth_n.copy()
  planted = [3, 40, 77, 110]
  label_n[planted] = (truth_n[planted] + 1) % 4
  found = find(logits_nc, feature_nf, label_n)
  assert sorted(found.index) == planted
  np.testing.assert_array_equal(found.suggested, truth_n[found.index])
  np.testing.assert_array_equal(found.votes[:, 1], K)
  margin = found.probability[:, 1] - found.probability[:, 0]
  assert (np.diff(margin) <= 0).all()


def test_right_labels_are_no_suspects():
  assert not len(find(*clouds()).index)


@pytest.mark.parametrize('deaf', ['network', 'neighbours'])
def test_both_must_agree(deaf):
  logits_nc, feature_nf, truth_n = clouds()
  label_n = truth_n.copy()
  label_n[3] = 1
  # One of the two sees the image as its label says.
  other = 40
  if deaf == 'network':
    logits_nc[3] = logits_nc[other]
  else:
    feature_nf[3] = feature_nf[other]
  assert 3 not in find(logits_nc, feature_nf, label_n).index


def test_classes_of_another_source_have_no_say():
  logits_nc, feature_nf, truth_n = clouds()
  label_n = truth_n.copy()
  label_n[3] = 1
  assert find(logits_nc, feature_nf, label_n).index.tolist() == [3]
  # Classes 0 and 2 are one source, 1 and 3 another.
  apart = find(logits_nc, feature_nf, label_n, group_c=(0, 1, 0, 1))
  assert not len(apart.index)


def test_neighbours_agree_with_a_sort_of_all_distances(monkeypatch):
  monkeypatch.setattr(suspects, '_ASKED', 3)
  monkeypatch.setattr(suspects, '_CHUNK', 7)
  rng = np.random.default_rng(1)
  feature_nf = rng.normal(size=(20, 6))
  group_n = np.arange(20) % 2
  asked_m = np.arange(1, 20, 3)
  near_mk = suspects._nearest(feature_nf, group_n, asked_m, 12)
  unit_nf = feature_nf / np.linalg.norm(feature_nf, axis=1, keepdims=True)
  for i, near_k in zip(asked_m, near_mk, strict=True):
    order = np.argsort(-unit_nf @ unit_nf[i])
    want = [j for j in order if j != i and group_n[j] == group_n[i]]
    assert near_k.tolist() == [*want, -1, -1, -1]


def test_the_list_names_images_and_classes(tmp_path):
  c = folders.get_config()
  c.suspects.neighbours = K
  logits_nc, feature_nf, truth_n = clouds(per_class=3, classes=10)
  pool = datasets.open_pool({'s': {'kind': 'packaged', 'name': 'digits'}})
  picked = np.concatenate(
    [np.flatnonzero(pool.labels == label)[:3] for label in range(10)]
  )
  # The second nought looks like a three.
  logits_nc[1], feature_nf[1] = logits_nc[9], feature_nf[9]

  class Learner:
    def source_answers(self, variables, dataset):
      assert variables == 'weights'
      np.testing.assert_array_equal(dataset.labels, truth_n)
      return logits_nc.astype(np.float16), feature_nf.astype(np.float16)

  found = suspects.stage(c, Learner(), 'weights', pool, picked, tmp_path)
  assert found == {'images': 30, 'suspects': 1}
  with open(tmp_path / suspects.NAME, newline='', encoding='utf-8') as file:
    (row,) = csv.DictReader(file)
  assert row['source_id'] == pool.ids[picked[1]]
  assert (row['label'], row['suggested']) == ('s:0', 's:3')
  assert int(row['neighbours_with_suggested']) == 3


def test_of_many_images_a_part_is_looked_at(tmp_path, monkeypatch):
  monkeypatch.setattr(suspects, '_MOST', 20)
  c = folders.get_config()
  pool = datasets.open_pool({'s': {'kind': 'packaged', 'name': 'digits'}})
  picked, asked = np.arange(3, 60), []

  class Learner:
    def source_answers(self, variables, dataset):
      asked.append(dataset.ids.tolist())
      logits_nc = np.eye(10, dtype=np.float16)[dataset.labels]
      return logits_nc, logits_nc

  for _ in range(2):
    found = suspects.stage(c, Learner(), None, pool, picked, tmp_path)
    assert found == {'images': 20, 'suspects': 0, 'of_images': 57}
  assert asked[0] == asked[1]  # as a resumed run has to
  assert len({*asked[0]} & {*pool.ids[picked]}) == 20
