"""What a finished search says of itself, and whether the files still agree."""

import hashlib
import json
import pathlib

import numpy as np

from sjft_jax import files, machine, paths
from sjft_jax.errors import UserError
from sjft_jax.ops import divergence

NAME = 'certificate.json'
# What the certificate vouches for.
FILES = ('neighbours.parquet', 'edges.npz')
_OWN = 'certificate_sha256'


def write(directory, *, key, found, describer, target, source):
  """Writes certificate.json beside the files it vouches for.

  Args:
    directory: where `FILES` lie.
    key: digest of all that the neighbours depend on.
    found: `search.Found`.
    describer: that described both sets.
    target: data set of the target training images.
    source: data set of the source images.

  Raises:
    RuntimeError: if the search did not see every source image once.
  """
  directory = paths.path(directory)
  once_s = found.times_s == 1
  if len(once_s) != len(source) or not once_s.all():
    raise RuntimeError(
      f'The search saw {np.count_nonzero(once_s)} of {len(source)} source '
      'images once, and nothing is certified that did not see all.'
    )
  whose_s = (
    np.zeros(len(source), int) if source.source is None else source.source
  )
  bad_s = np.isin(np.arange(len(source)), list(found.bad))
  last_q = found.table.distance_qk[:, -1]
  # Rows that end early leave nothing out.
  margin_q = np.full(len(last_q), np.inf)
  np.subtract(found.beyond_q, last_q, out=margin_q, where=np.isfinite(last_q))
  closest = int(margin_q.argmin())
  k = found.table.distance_qk.shape[1]
  value = {
    'key': key,
    'described_on': machine.described(),
    'epsilon': divergence.EPSILON,
    'dimensions': len(describer.weight_d),
    'targets': len(target),
    'k': k,
    'source_images': len(source),
    'source_images_seen': found.seen.images,
    'sources': {
      name: {
        'images': int((whose_s == i).sum()),
        'seen_once': int(once_s[whose_s == i].sum()),
        'unreadable': int(bad_s[whose_s == i].sum()),
      }
      for i, name in enumerate(source.sources or (source.name,))
    },
    'smallest_margin_nats': _number(margin_q[closest]),
    'smallest_margin_target': (
      str(target.ids[closest]) if np.isfinite(margin_q[closest]) else None
    ),
    'targets_decided_by_index': int((margin_q == 0).sum()),
    'screens': [f'{o} products, rank {r}' for o, r in found.screens],
    'screen_error_bound_nats': found.seen.bound,
    'pairs': found.seen.good * len(target),
    'pairs_left_open_by_screen': found.seen.opened,
    'pairs_evaluated_in_float64': int(found.seen.evaluated_q.sum()),
    'targets_widened': int((found.seen.widened_q > 0).sum()),
    'pairs_evaluated_by_widening': int(found.seen.widened_q.sum()),
    'unreadable': {
      str(source.ids[i]): str(reason) for i, reason in sorted(found.bad.items())
    },
    **{_sum_name(name): files.digest(directory / name) for name in FILES},
  }
  files.write_json(directory / NAME, {**value, _OWN: _digest(value)})


def read(directory):
  """The certificate, once it and the files it vouches for are as written.

  Raises:
    UserError: if one is missing, or a byte of one has changed.
  """
  directory = paths.path(directory)
  for name in (NAME, *FILES):
    if not (directory / name).exists():
      raise UserError(
        f'Needed a finished search by descriptors; {directory} has no {name}. '
        'Let the run go on to the end of its search; of a comparison, give one '
        'of its runs/<arm>-<seed>.'
      )
  value = _own(directory / NAME)
  for name in FILES:
    if value.get(_sum_name(name)) != files.digest(directory / name):
      raise UserError(_changed(directory / name))
  return value


def key(directory):
  """Digest of all that the neighbours in a directory depend on.

  Only the certificate itself is looked at.

  Raises:
    UserError: if a byte of it has changed.
  """
  return _own(paths.path(directory) / NAME)['key']


def _own(path):
  try:
    value = files.read_json(path)
    whole = path.read_bytes() == files.json_bytes(value)
    own = value.pop(_OWN)
  except (ValueError, KeyError, AttributeError, TypeError):
    whole = False
  if not whole or own != _digest(value):
    raise UserError(_changed(path))
  return value


def _changed(path):
  return (
    f'{path} is not as the search wrote it. Restore it, or search again in '
    'another --workdir.'
  )


def _number(value):
  """JSON has no infinity: None where nothing was left out."""
  return float(value) if np.isfinite(value) else None


def _sum_name(name):
  return f'{pathlib.Path(name).stem}_sha256'


def _digest(value):
  text = json.dumps(value, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()
