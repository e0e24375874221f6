"""Which sources and classes lent how much, and to whom."""

import numpy as np

from sjft_jax import selection
from sjft_jax.report import record, wording


def borrowing(drawn, target, source) -> tuple[dict, dict]:
  """What the candidates are: counts by source; what the page shows.

  Args:
    drawn: `Candidates` of every target image. Where all share one list,
      nobody borrows from anyone in particular.
    target: the target training images.
    source: the pool.
  """
  images = selection.selected(drawn)
  lent_c = np.bincount(source.labels[images], minlength=len(source.classes))
  held_c = np.bincount(source.labels, minlength=len(source.classes))
  pair_tc = np.zeros((len(target.classes), len(source.classes)), int)
  if len(np.unique(drawn.start)) > 1:
    for q, label in enumerate(target.labels):
      lenders = source.labels[drawn.index[drawn.start[q] : drawn.stop[q]]]
      pair_tc[label] += np.bincount(lenders, minlength=len(source.classes))

  groups = {}
  for c in largest(lent_c, len(lent_c)):
    groups.setdefault(source.classes[c].partition(':')[0], []).append(c)
  counts = {
    'images_selected': {g: int(lent_c[c].sum()) for g, c in groups.items()},
    'classes_selected': {g: len(c) for g, c in groups.items()},
  }
  classes = [
    (
      group,
      [
        (
          source.classes[c].partition(':')[2],
          f'{wording.count(lent_c[c])} of {wording.count(held_c[c])}',
          lent_c[c] / lent_c[members[0]],
        )
        for c in members
      ],
    )
    for group, members in groups.items()
  ]
  shares = [
    (
      target.classes[t],
      [
        (
          record.class_name(source, c),
          f'{wording.percent(row_c[c] / row_c.sum(), 0)} %',
        )
        for c in largest(row_c, 4)
      ],
    )
    for t, row_c in enumerate(pair_tc)
    if row_c.any()
  ]
  return counts, {'classes': classes, 'lending': shares}


def source_table(lent, data) -> list[list[str]]:
  """Head and rows: how much of each source is borrowed."""
  held = data.get('source', {}).get('images', {})
  classes = lent.get('classes_selected') or {}
  head = ['Source', 'Images borrowed', 'Images in the pool', 'Share, %']
  rows = [[*head, 'Classes borrowed from']]
  if record.borrowed(lent):
    for name, images in lent['images_selected'].items():
      share = images / held[name] if held.get(name) else None
      counts = (images, held.get(name), classes.get(name))
      lent_text, held_text, class_text = map(wording.count, counts)
      rows.append(
        [name, lent_text, held_text, wording.percent(share), class_text]
      )
  return rows


def largest(values, count) -> np.ndarray:
  """Positions of the largest values above zero, ties to the lower one."""
  order = np.argsort(-values, kind='stable')[:count]
  return order[values[order] > 0]
