"""Images beside their neighbours, the hardest ones, and those withheld."""

import base64

import cv2
import numpy as np

from sjft_jax import files, paths
from sjft_jax.data import preprocess
from sjft_jax.report import lending, record, wording

# Ranks of the gallery. Source: Ge & Yu, CVPR 2017, figure 2.
RANKS = (1, 10, 20, 30, 40)
GALLERY_ROWS = 8
HARDEST = 9
# Images are shown about 130 CSS pixels wide.
THUMBNAIL = 160


def _thumbnail(dataset, index) -> dict | None:
  """A data URI and its size in pixels; None if the image cannot be read."""
  try:
    image = preprocess.decode(dataset.read(int(index)))
  except (OSError, preprocess.BadImage):
    return None
  side = max(image.shape[:2])
  # Nearest neighbours and whole factors keep the pixels of a tiny scan sharp.
  tiny = side <= THUMBNAIL // 3
  scale = THUMBNAIL // side if tiny else min(1, THUMBNAIL / side)
  height, width = (max(1, round(scale * n)) for n in image.shape[:2])
  method = cv2.INTER_NEAREST if tiny else cv2.INTER_AREA
  image = cv2.resize(image, (width, height), interpolation=method)
  kind = 'png' if tiny else 'jpeg'
  data = cv2.imencode(f'.{kind}', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
  text = base64.b64encode(data).decode()
  uri = f'data:image/{kind};base64,{text}'
  return {'uri': uri, 'width': width, 'height': height}


def gallery(neighbours, target, source) -> list[dict]:
  """Target images beside their neighbours of some ranks."""
  searched = np.unique(neighbours.target)
  rows = []
  for t in searched[_spread(target.labels[searched], GALLERY_ROWS)]:
    pairs = neighbours.of(t)
    index, distance = neighbours.source[pairs], neighbours.distance[pairs]
    most = min(len(index), RANKS[-1])
    ranks = [*(r for r in RANKS if r < most), most]
    rows.append(
      {
        'id': target.ids[t],
        'class': target.classes[target.labels[t]],
        'image': _thumbnail(target, t),
        'neighbours': [
          {
            'rank': wording.ordinal(r),
            'distance': f'{distance[r - 1]:#.3g}',
            'id': source.ids[s],
            'class': record.class_name(source, source.labels[s]),
            'image': _thumbnail(source, s),
          }
          for r, s in ((r, index[r - 1]) for r in ranks)
        ],
      }
    )
  return rows


def _spread(labels, count) -> np.ndarray:
  """Positions of `count` examples spread over the classes, earlier ones first.

  With more classes than `count`, the first example of evenly spaced classes;
  with fewer, the first of every class, then the second of every class, ...
  """
  order = np.argsort(labels, kind='stable')
  ordered = labels[order]
  repeat = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
  order = order[np.lexsort((ordered, repeat))]
  order = order[: max(count, len(np.unique(labels)))]
  picks = np.linspace(0, len(order) - 1, min(count, len(order)))
  return order[picks.astype(int)]


def hardest(path, next_k_q, target) -> dict:
  """The target images with the largest next K, wrong and unsure ones first."""
  with (
    files.opened(path) as file,
    np.load(file, allow_pickle=False) as stored,
  ):
    ids, labels, probability = (
      stored[f'train_{name}'] for name in ('id', 'label', 'probability')
    )
  place = {name: i for i, name in enumerate(target.ids.tolist())}
  index = np.array([place[name] for name in ids.tolist()], int)
  tiny = np.finfo(probability.dtype).tiny
  entropy = -(probability * np.log(np.maximum(probability, tiny))).sum(axis=1)
  predicted = probability.argmax(axis=1)
  right = predicted == labels
  order = np.lexsort((-entropy, right, -next_k_q[index]))[:HARDEST]
  cards = []
  for i in order:
    cards.append(
      {
        'id': ids[i],
        'class': target.classes[labels[i]],
        'image': _thumbnail(target, index[i]),
        'right': right[i],
        'predicted': target.classes[predicted[i]],
        'entropy': f'{entropy[i]:.2f}',
        'k': wording.count(next_k_q[index[i]]),
        'top': [
          (target.classes[c], f'{wording.percent(probability[i, c], 0)} %')
          for c in lending.largest(probability[i], 3)
        ],
      }
    )
  wrong = int(np.count_nonzero(~right))
  return {'cards': cards, 'wrong': wrong, 'images': len(ids)}


def withheld(workdir, results) -> dict | None:
  """Test images found in the source; None where nothing was looked for."""
  found = results.get('guard')
  if not found:
    return None
  rows = record.csv_rows(workdir / 'guard' / 'quarantine.csv')
  pairs = []
  for path in sorted((workdir / 'guard' / 'pairs').glob('*.jpg')):
    data = base64.b64encode(paths.read(path)).decode()
    uri = f'data:image/jpeg;base64,{data}'
    pairs.append(rows[int(path.stem)] | {'uri': uri})
  head = ['Round', 'All test images, %', 'Without those in the source, %']
  both = zip(
    found['mean_class_accuracy'],
    found['mean_class_accuracy_without_exposed'],
    strict=True,
  )
  table = [
    [str(m), *map(wording.percent, values)] for m, values in enumerate(both)
  ]
  return found | {
    'pairs': pairs,
    'accuracy': wording.typeset_table([head, *table])
    if found['test_images_exposed']
    else None,
  }
