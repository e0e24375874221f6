"""Digits as image folders, where a test needs a small data set."""

import cv2
import numpy as np


def write(root, **ranges):
  """Writes scans 8 x 8 below `root`, and beside them one that is broken.

  Args:
    root: a directory.
    **ranges: (first, stop) of the scans in `train`, `test` and `source`; only
      the source has digits above 3.

  Returns:
    The directory.
  """
  # Children that only ask for the processes' commands need no scikit-learn.
  from sklearn.datasets import load_digits

  digits = load_digits()
  for part, (first, stop) in ranges.items():
    for i in range(first, stop):
      if part != 'source' and digits.target[i] > 3:
        continue
      folder = root / part / f'digit {digits.target[i]}'
      folder.mkdir(parents=True, exist_ok=True)
      image = (digits.images[i] * 255 / 16).astype(np.uint8)
      cv2.imwrite(str(folder / f'{i:03d}.png'), image)
  (root / 'source' / 'digit 1' / 'broken.png').write_bytes(b'not an image')
  return root
