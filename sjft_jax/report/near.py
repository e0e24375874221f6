"""Which filters make the pairs of the galleries near, and which do not."""

import numpy as np

from sjft_jax import reasons
from sjft_jax.report import galleries, plots, record, wording

NAMED = 3  # filters


def context(directory, target, source) -> dict | None:
  """What the page says of the pairs of a search; None where nothing is known.

  Args:
    directory: of the search.
    target: the target training images.
    source: the pool that was searched.

  Returns:
    `gabor`: whether the filters are those of the Gabor bank; `pairs`: cards.
  """
  found = record.read(directory / reasons.NAME)
  if not found.get('pairs'):
    return None
  names, layers = found['filters'], np.array(found['layers'])
  starts = (np.flatnonzero(np.diff(layers)) + 1).tolist()
  cards = [
    _card(f'near-{i}', pair, names, starts, target, source)
    for i, pair in enumerate(found['pairs'])
  ]
  return {'gabor': 'degrees' in names[0], 'pairs': cards}


def _card(name, pair, filters, starts, target, source) -> dict:
  nats_c, usual_c = (np.array(pair[k]) for k in ('nats', 'usual'))
  closer = np.argsort(nats_c - usual_c, kind='stable')[:NAMED]
  # A filter that is no nearer than usual is no reason to be near.
  closer = closer[nats_c[closer] < usual_c[closer]]
  # Of those that matter: where both are next to 0, their ratio says nothing.
  heavy = np.setdiff1d(np.flatnonzero(nats_c >= nats_c.mean()), closer)
  ratio = nats_c[heavy] / np.maximum(usual_c[heavy], 1e-30)
  apart = heavy[np.argsort(-ratio, kind='stable')][:NAMED]
  pictures = {}
  for which, dataset in (('target', target), ('source', source)):
    (i,) = np.flatnonzero(dataset.ids == pair[f'{which}_id'])
    label = dataset.labels[i]
    pictures[which] = {
      'id': dataset.ids[i],
      'class': target.classes[label]
      if dataset is target
      else record.class_name(source, label),
      'image': galleries.thumbnail(dataset, i),
    }
  return pictures | {
    'rank': wording.ordinal(pair['rank'] + 1),
    'distance': f'{pair["distance"]:#.3g}',
    'usual': f'{pair["usual_distance"]:#.3g}',
    **{
      key: [
        (filters[c], f'{nats_c[c]:.2g}', f'{usual_c[c]:.2g}') for c in chosen
      ]
      for key, chosen in (('closer', closer), ('apart', apart))
    },
    'plot': plots.bars(
      name,
      'Distance by filter',
      'filters in their order',
      'nats',
      nats_c,
      usual_c,
      ('this pair', 'a usual source image'),
      starts,
    ),
  }
