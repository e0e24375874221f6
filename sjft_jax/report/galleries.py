"""Images beside their neighbours, the hardest ones, and those withheld."""

import base64
import functools

import cv2
import numpy as np

from sjft_jax import paths, reasons, round_files, selection
from sjft_jax.data import preprocess
from sjft_jax.report import lending, record, wording

# Ranks of the gallery. Source: Ge & Yu, CVPR 2017, figure 2.
RANKS = (1, 10, 20, 30, 40)
GALLERY_ROWS = 8
CELLS = 6  # images of a row
HARDEST = 9
INSIDE = 24  # repeats inside the target that are listed
# Images are shown about 130 CSS pixels wide.
THUMBNAIL = 160


def thumbnail(dataset, index) -> dict | None:
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


def _nearest(table, drawn, near, target, source, unit) -> list[dict]:
  """Target images beside their neighbours of some ranks."""
  del drawn, near
  found_qk = table.index_qk >= 0
  searched = np.flatnonzero(found_qk.any(axis=1))
  rows = []
  for t in searched[reasons.spread(target.labels[searched], GALLERY_ROWS)]:
    shown = _ranked(table.index_qk[t, found_qk[t]], source)
    for image in shown:
      distance = table.distance_qk[t, image['place']]
      image['note'] = f'{distance:#.3g}{unit}'
    rows.append({'head': _head(target, t), 'title': '', 'images': shown})
  return rows


def _common(table, drawn, near, target, source) -> list[dict]:
  """Target images beside what the images of their class have in common."""
  del table
  rows, seen = [], set()
  for t in reasons.spread(target.labels, GALLERY_ROWS):
    label = target.labels[t]
    if label in seen:
      continue
    seen.add(label)
    shown = _ranked(drawn.index[drawn.start[t] : drawn.stop[t]], source)
    mine = np.flatnonzero(target.labels == label)
    lists = [near.index[near.start[q] : near.stop[q]] for q in mine]
    for image in shown:
      votes = sum(image['index'] in index for index in lists)
      image['note'] = f'near {votes} of {len(mine)}'
    rows.append({'head': _head(target, t), 'title': '', 'images': shown})
  return rows


def _classes(table, drawn, near, target, source) -> list[dict]:
  """The source classes with the largest share of near images, and these."""
  del table
  selected, near_n = selection.selected(drawn), selection.selected(near)
  # To how many target images each source image is near.
  times_n = np.zeros(len(source), int)
  for q in range(len(target)):
    times_n[near.index[near.start[q] : near.stop[q]]] += 1
  classes = np.unique(source.labels[selected])
  held_c, near_c = (
    np.bincount(source.labels[index], minlength=len(source.classes))[classes]
    for index in (selected, near_n)
  )
  rows = []
  for at in np.argsort(-near_c / held_c, kind='stable')[:GALLERY_ROWS]:
    mine = selected[source.labels[selected] == classes[at]]
    order = mine[np.argsort(-times_n[mine], kind='stable')]
    shown = [_image(source, s, place) for place, s in enumerate(order[:CELLS])]
    for image in shown:
      image['note'] = f'near {wording.count(times_n[image["index"]])}'
    name = record.class_name(source, classes[at])
    title = f'{name}: {near_c[at]} of its {held_c[at]} images are near'
    rows.append({'head': None, 'title': title, 'images': shown})
  return rows


def _head(target, t) -> dict:
  """A target image that a row is about."""
  return {
    'id': target.ids[t],
    'class': target.classes[target.labels[t]],
    'image': thumbnail(target, t),
  }


def _ranked(index, source) -> list[dict]:
  """Source images of some ranks in a list."""
  most = min(len(index), RANKS[-1])
  ranks = [*(r for r in RANKS if r < most), most]
  return [_image(source, index[r - 1], r - 1) for r in ranks]


def _image(source, s, place) -> dict:
  return {
    'index': int(s),
    'place': place,
    'rank': wording.ordinal(place + 1),
    'id': source.ids[s],
    'class': record.class_name(source, source.labels[s]),
    'image': thumbnail(source, s),
  }


# (`tables.Table`, what may be drawn, what is near, target, source) -> rows.
GALLERIES = {
  'neighbours': functools.partial(_nearest, unit='\N{NO-BREAK SPACE}nats'),
  'features': functools.partial(_nearest, unit=''),
  'labelled': _common,
  'classes': _classes,
}


def hardest(directory, next_k_q, target) -> dict:
  """The target images with the largest next K, wrong and unsure ones first.

  Args:
    directory: of the round that has answered.
    next_k_q: K in the next one, int [q].
    target: the target training images.
  """
  answers = round_files.posteriors(directory)
  ids, labels, probability = (
    answers[f'train_{name}'] for name in ('id', 'label', 'probability')
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
        'image': thumbnail(target, index[i]),
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
  inside = record.csv_rows(workdir / 'guard' / 'target_repeats.csv', INSIDE)
  return found | {
    'pairs': pairs,
    'inside': {
      'head': [name.replace('_', ' ') for name in inside[0]],
      'rows': [list(row.values()) for row in inside],
    }
    if inside
    else None,
    'accuracy': wording.typeset_table([head, *table])
    if found['test_images_exposed']
    else None,
  }
