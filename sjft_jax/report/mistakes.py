"""Which classes are taken for which."""

import numpy as np

from sjft_jax import round_files
from sjft_jax.report import plots, wording

SHOWN = 12
_DRAWN = 400  # classes; the cells of more are smaller than a pixel


def context(directory) -> dict | None:
  """The confusion matrix of a round; None where nothing was answered.

  Args:
    directory: of the round.

  Returns:
    `plot`, None of very many classes, and `table`, the most frequent mistakes.
  """
  names, count_cc = round_files.confusion(directory)
  total_c = count_cc.sum(axis=1) if len(names) else np.zeros(0, int)
  if not total_c.any():
    return None
  share_cc = count_cc / np.maximum(total_c, 1)[:, None]
  plot = None
  if len(names) <= _DRAWN:
    plot = plots.matrix(
      'confusion',
      'Answers by true class',
      share_cc,
      f'{len(names)} classes in their order; a row is a true class, and a cell '
      'the stronger the larger its share of the row.',
    )
  wrong_cc = count_cc - np.diag(np.diagonal(count_cc))
  order = np.argsort(-wrong_cc, axis=None, kind='stable')[:SHOWN]
  head = ['True class', 'Taken for', 'Images', 'Share, %', 'The other way']
  rows = [
    [
      names[i],
      names[j],
      f'{wording.count(wrong_cc[i, j])} of {wording.count(total_c[i])}',
      wording.percent(share_cc[i, j], 0),
      wording.count(wrong_cc[j, i]),
    ]
    for i, j in zip(*np.unravel_index(order, wrong_cc.shape), strict=True)
    if wrong_cc[i, j]
  ]
  return {'plot': plot, 'table': wording.typeset_table([head, *rows])}
