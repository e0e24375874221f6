"""Source images whose label may be wrong: listed, never removed.

An image is suspect if the network and its neighbours agree on another class of
its source: the network finds it likeliest, and of the images nearest in the
trunk's feature (cosine) more have that label than the image's own. Both were
trained with these labels, so that an image learnt by heart is not found. Of 35
labels changed at random among 826 selected MNIST images, two rounds after
1,200 updates of pretraining, 31 were listed, and 6 others.

The classes of a source are compared among themselves alone, since two sources
may both be right about one picture. Of very many images a random part is looked
at, so that neither memory nor time grows with the selection.
"""

import csv
import dataclasses
import itertools

import numpy as np
from scipy import special

from sjft_jax import files, paths, processes
from sjft_jax.ops import topk

NAME = 'label_suspects.csv'
COLUMNS = (
  'source_id',
  'label',
  'suggested',
  'probability_of_label',
  'probability_of_suggested',
  'neighbours_with_label',
  'neighbours_with_suggested',
)
# Images that are looked at: with ImageNet's classes and 2,048 features some
# 2 GB, and a minute or so of a processor for their neighbours.
_MOST = 50_000
_SHOWN = 24  # images in the report
_ASKED = 256  # images whose neighbours are looked for at a time
_CHUNK = 2**16  # images among which


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Suspects:
  """Images whose label may be wrong, the surest first.

  Attributes:
    index: their positions, int64 [m].
    suggested: the class that is likelier, int [m].
    probability: of the label and of the suggested class, float [m, 2].
    votes: neighbours with the label and with the suggested class, int [m, 2].
  """

  index: np.ndarray
  suggested: np.ndarray
  probability: np.ndarray
  votes: np.ndarray


def find(logits_nc, feature_nf, label_n, group_c, neighbours) -> Suspects:
  """Finds images whose label may be wrong.

  Args:
    logits_nc: of the classes, float [n, c].
    feature_nf: of the same images, float [n, f].
    label_n: int [n].
    group_c: group of every class, int [c]; classes of other groups than the
      label's, and images of such, are not looked at.
    neighbours: how many are asked, at least 1.

  Returns:
    The suspects, by the difference of the two probabilities, descending.
  """
  mine_nc = group_c == group_c[label_n][:, None]
  probability_nc = special.softmax(
    np.where(mine_nc, logits_nc.astype(np.float32), -np.inf), axis=1
  )
  n = np.arange(len(label_n))
  own_n = probability_nc[n, label_n]
  likely_n = probability_nc.argmax(axis=1)
  top_n = probability_nc[n, likely_n]
  asked_m = np.flatnonzero(likely_n != label_n)
  near_mk = _nearest(feature_nf, group_c[label_n], asked_m, neighbours)
  near_label = np.where(near_mk >= 0, label_n[near_mk], -1)
  votes = np.stack(
    [
      (near_label == of[asked_m, None]).sum(axis=1)
      for of in (label_n, likely_n)
    ],
    axis=1,
  )
  found = asked_m[votes[:, 1] > votes[:, 0]]
  votes = votes[votes[:, 1] > votes[:, 0]]
  order = np.argsort(own_n[found] - top_n[found], kind='stable')
  found = found[order]
  return Suspects(
    index=found,
    suggested=likely_n[found],
    probability=np.stack([own_n[found], top_n[found]], axis=1),
    votes=votes[order],
  )


def _nearest(feature_nf, group_n, asked_m, k):
  """Positions of the k nearest of an image's group, without itself; or -1."""
  unit_nf = feature_nf.astype(np.float32)
  unit_nf /= np.linalg.norm(unit_nf, axis=1, keepdims=True) + 1e-12
  rows = []
  for first in range(0, len(asked_m), _ASKED):
    mine = asked_m[first : first + _ASKED]
    distance, index = np.full((2, len(mine), k), np.inf)
    index[:] = -1
    for start in range(0, len(unit_nf), _CHUNK):
      chunk = slice(start, start + _CHUNK)
      apart = 1 - unit_nf[mine] @ unit_nf[chunk].T
      at = np.arange(start, start + apart.shape[1])
      other = group_n[mine][:, None] != group_n[chunk]
      apart[other | (mine[:, None] == at)] = np.inf
      least = np.argpartition(apart, min(k, len(at)) - 1, axis=1)[:, :k]
      distance, index = topk.merge(
        distance,
        index,
        np.take_along_axis(apart, least, axis=1),
        at[least],
        k,
      )
    rows.append(np.where(np.isfinite(distance), index, -1))
  return np.concatenate(rows or [np.empty((0, k))]).astype(np.int64)


def stage(c, learner, variables, pool, index, workdir) -> dict:
  """Lists the suspects among the selected source images of a run.

  Args:
    c: every setting; `suspects.neighbours` and `seed` are read.
    learner: of the run.
    variables: its network, after the last round.
    pool: the source, with the labels that the source head learnt.
    index: positions of the selected images, int [n].
    workdir: directory of the run; label_suspects.csv goes there.

  Returns:
    {'images': how many were looked at, 'suspects': how many are listed}, and,
    where not all were looked at, 'of_images': how many were selected.
  """
  images = len(index)
  if images > _MOST:
    rng = np.random.default_rng(c.seed)
    index = np.sort(rng.choice(index, _MOST, replace=False))
  selected = pool.subset(index)
  logits_nc, feature_nf = learner.source_answers(variables, selected)
  names = [name.partition(':')[0] for name in pool.classes]
  group_c = np.unique(names, return_inverse=True)[1]

  def listed():
    found = find(
      logits_nc, feature_nf, selected.labels, group_c, c.suspects.neighbours
    )
    rows = _rows(found, selected)
    files.write_csv(paths.path(workdir) / NAME, COLUMNS, rows)
    return {'images': len(selected), 'suspects': len(found.index)}

  found = processes.told(listed)
  return found if images <= _MOST else found | {'of_images': images}


def shown(workdir, results) -> dict | None:
  """What the report says of the list; None where there is none.

  Args:
    workdir: directory of the run.
    results: what results.json holds.

  Returns:
    What `stage` returned, and 'table' of the first ones: 'head' and 'rows' of
    texts.
  """
  found, path = results.get('label_suspects'), paths.path(workdir) / NAME
  if not found or not path.exists():
    return None
  with files.opened_text(path) as file:
    rows = list(itertools.islice(csv.reader(file), _SHOWN + 1))
  head = [name.replace('_', ' ') for name in rows[0]]
  return found | {'table': {'head': head, 'rows': rows[1:]}}


def _rows(found, selected):
  """What the list says of each, by COLUMNS."""
  for i, suggested, probability, votes in zip(
    found.index, found.suggested, found.probability, found.votes, strict=True
  ):
    yield (
      selected.ids[i],
      selected.classes[selected.labels[i]],
      selected.classes[suggested],
      *(f'{p:.4g}' for p in probability),
      *votes,
    )
