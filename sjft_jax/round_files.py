"""Where rounds lie and the files of one: what its network answered, K by that.

rounds/<m>/ gets posteriors.npz, confusion.csv and budget.csv, in this order: a
round that has the last one is finished. distilled/ has the first one, of the
test images alone.
"""

import csv

import numpy as np

from sjft_jax import evaluate, files
from sjft_jax.ops import hardness

# Where the network lies that stands for those of all rounds.
DISTILLED = 'distilled'
_ROUNDS = 'rounds'
_POSTERIORS = 'posteriors.npz'
_CONFUSION = 'confusion.csv'
_BUDGET = 'budget.csv'


def directory(workdir, m):
  """The directory of a round.

  Args:
    workdir: path of the run.
    m: the round, from 0.
  """
  return workdir / _ROUNDS / str(m)


def directories(workdir) -> list:
  """The directories of the rounds that have begun, by their number.

  Args:
    workdir: path of the run.
  """
  begun = (workdir / _ROUNDS).glob('[0-9]*')
  return sorted(begun, key=lambda path: int(path.name))


def finished(directory) -> bool:
  """Whether the round in a directory has left all its files."""
  return (directory / _BUDGET).exists()


def answered(directory) -> bool:
  """Whether a directory holds answers: of a round or of `DISTILLED`."""
  return (directory / _POSTERIORS).exists()


def write(directory, posterior_qc, test_nc, budget_q, next_q, target, test):
  """Writes all files of a round.

  Args:
    directory: of the round.
    posterior_qc: class probabilities of the target images, float [q, c].
    test_nc: of the test images, float [n, c].
    budget_q: K in this round, int [q].
    next_q: K in the next one, int [q].
    target: the target training images.
    test: the target test images.
  """
  _write_posteriors(
    directory, train=(target, posterior_qc), test=(test, test_nc)
  )
  counts_cc = evaluate.confusion(test_nc, test.labels).tolist()
  files.write_csv(
    directory / _CONFUSION,
    ('true class', *target.classes),
    ((name, *row) for name, row in zip(target.classes, counts_cc, strict=True)),
  )
  entropy_q = np.asarray(hardness.entropy(posterior_qc))
  correct_q = posterior_qc.argmax(axis=1) == target.labels
  files.write_csv(
    directory / _BUDGET,
    ('target_id', 'entropy', 'correct', 'k', 'next_k'),
    (
      (name, f'{entropy:.6g}', int(correct), k, next_k)
      for name, entropy, correct, k, next_k in zip(
        target.ids, entropy_q, correct_q, budget_q, next_q, strict=True
      )
    ),
  )


def write_test(directory, test_nc, test):
  """Writes the answers of a network that only test images are shown to.

  Args:
    directory: of the network.
    test_nc: class probabilities of the test images, float [n, c].
    test: the target test images.
  """
  _write_posteriors(directory, test=(test, test_nc))


def _write_posteriors(directory, **parts):
  arrays = {}
  for part, (dataset, posterior_nc) in parts.items():
    arrays |= {
      f'{part}_id': dataset.ids,
      f'{part}_label': dataset.labels,
      f'{part}_probability': posterior_nc,
    }
  with files.replacing(directory / _POSTERIORS) as file:
    np.savez_compressed(file, **arrays)


def posteriors(directory) -> dict[str, np.ndarray]:
  """The answers that a network has left in a directory.

  Returns:
    test_id, unicode [n], test_label, int32 [n], test_probability, float [n, c];
    of a round also train_id, train_label and train_probability.
  """
  return files.read_npz(directory / _POSTERIORS)


def budget(directory, target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """K of a finished round, by position in the target.

  Args:
    directory: of the round.
    target: the target training images.

  Returns:
    (K in the round, int [q]; in the next one, int [q]; entropy of the answer in
    nats, float [q]).
  """
  place = {name: i for i, name in enumerate(target.ids.tolist())}
  k_q, next_k_q = np.zeros((2, len(target)), int)
  entropy_q = np.zeros(len(target))
  with files.opened_text(directory / _BUDGET) as file:
    for row in csv.DictReader(file):
      i = place[row['target_id']]
      k_q[i] = int(row['k'])
      next_k_q[i] = int(row['next_k'])
      entropy_q[i] = float(row['entropy'])
  return k_q, next_k_q, entropy_q


def confusion(directory) -> tuple[list[str], np.ndarray]:
  """Classes, and test images by true class and answer, int [c, c].

  Both are empty where the round has not answered yet.
  """
  path = directory / _CONFUSION
  if not path.exists():
    return [], np.zeros((0, 0), int)
  with files.opened_text(path) as file:
    _, *rows = csv.reader(file)
  return [name for name, *_ in rows], np.array(
    [list(map(int, counts)) for _, *counts in rows]
  )
