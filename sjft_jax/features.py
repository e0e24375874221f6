"""Nearest neighbours by the trunk's pooled feature, a baseline of the search.

The same trunk that is fine-tuned describes both sets; what it was pretrained on
decides what is alike. Exact, given the features: they are rounded to whole
numbers, so that distances are sums of whole numbers, whatever the blocks.
"""

import jax
import numpy as np

from sjft_jax import files, paths, processes, progress, streams, tables, train
from sjft_jax import mesh as meshes
from sjft_jax.data import pipelines, preprocess
from sjft_jax.errors import UserError
from sjft_jax.models import pretrained, trunks, two_heads, weight_files

NAME = 'features.json'
# A feature's length. Sums of 2 ** 24 are exact in float64, and in float32.
_LENGTH = 2**12
_SHARD = 4096  # source images between two looks at the table


def find(c, target, source, directory, *, mesh, donors=()):
  """Describes both sets and searches, or reads what an earlier start left.

  D(t, s) = |t - s|^2, t and s the features at length 1: 2 - 2 cos of their
  angle.

  Args:
    c: every setting; `model`, `train.resize`, `train.crop`, `evaluate.batch`,
      `budget`, `threads` and `max_bad_fraction` are read.
    target: data set of the target training images.
    source: the pool.
    directory: where neighbours.parquet and features.json go.
    mesh: the devices.
    donors: directories of finished searches, to take over from.

  Returns:
    (source positions, nearest first, ties to the lower one, int64 [q, k], -1
    where a row ends; {source id: why} of the images that cannot be decoded).

  Raises:
    UserError: if the weights cannot be read or are of another trunk; or as
      `nearest`.
  """
  directory = paths.path(directory)
  finished, key = directory / NAME, _key(c, target, source)

  def search():
    files.adopt(
      directory,
      NAME,
      donors,
      lambda donor: files.read_json(donor / NAME)['key'] == key,
    )
    if finished.exists() and files.read_json(finished)['key'] != key:
      raise UserError(
        f'{directory} holds a search of other images, weights or settings, '
        'or of another build. Choose another --workdir.'
      )
    if not finished.exists():
      describe = _describer(c, meshes.own(mesh))
      table, bad = nearest(
        describe, target, source, key['maximum'], c.max_bad_fraction
      )
      tables.write(
        directory / 'neighbours.parquet', table, target.ids, source.ids
      )
      files.write_json(finished, {'key': key, 'unreadable': bad})

  processes.told(search)
  found = tables.read(directory / 'neighbours.parquet', target.ids, source.ids)
  return found.index_qk, files.read_json(finished)['unreadable']


def nearest(describe, target, source, k, max_bad_fraction=1.0):
  """The k nearest source images of every target image.

  Args:
    describe: data set -> blocks of (positions int [b], features float [b, d],
      {position: why} of images that could not be decoded).
    target: data set.
    source: data set.
    k: depth.
    max_bad_fraction: the largest share of the source to go on without because
      it cannot be read now. Those few are read once more at the end.

  Returns:
    (`tables.Table`; {source id: why} of the images that were left out).

  Raises:
    UserError: if a target image cannot be read, or too many of the source; or
      if features are not finite.
  """
  blocks = [(index, whole(x)) for index, x, _ in describe(target)]
  target_qd = np.concatenate([x for _, x in blocks])
  order = np.argsort(np.concatenate([index for index, _ in blocks]))
  streams.refuse_lost_target(len(target_qd), len(target))
  target_qd = target_qd[order]
  table, held = tables.Table.empty(len(target_qd), k), []

  def settle():
    index_s = np.concatenate([index for index, _ in held])
    distance_qs = _squared(target_qd, np.concatenate([x for _, x in held]))
    held.clear()
    row_n, at_n = np.nonzero(distance_qs <= table.distance_qk[:, -1:])
    table.merge(row_n, index_s[at_n], distance_qs[row_n, at_n])

  def search(index_s):
    """Takes in these images; {position: why} of the bad, and which may pass."""
    bad, lost = {}, []
    for at_b, feature_bd, unreadable in describe(source.subset(index_s)):
      unreadable = {int(index_s[i]): why for i, why in unreadable.items()}
      bad |= unreadable
      lost += streams.passing(unreadable.items())
      # What is written is without them for good.
      streams.refuse_outage(lost, source.ids, len(source), max_bad_fraction)
      held.append((index_s[at_b], whole(feature_bd)))
      if sum(len(index) for index, _ in held) >= _SHARD:
        settle()
    if held:
      settle()
    return bad, lost

  bad, lost = search(np.arange(len(source)))
  if lost:
    again, _ = search(np.array(lost))
    bad = {i: bad[i] for i in bad.keys() - set(lost)} | again
  table.distance_qk /= _LENGTH**2
  return table, {str(source.ids[i]): bad[i] for i in sorted(bad)}


def whole(feature_nd) -> np.ndarray:
  """Features at one length, rounded to whole numbers, float64 [n, d].

  Raises:
    UserError: if one is not finite.
  """
  feature_nd = np.asarray(feature_nd, np.float64)
  if not np.isfinite(feature_nd).all():
    raise UserError(
      'Needed features that are finite numbers; some of the images have others.'
      ' Look at model.weights: they are broken, or of another kind of trunk.'
    )
  length_n = np.linalg.norm(feature_nd, axis=1, keepdims=True)
  return np.rint(_LENGTH * feature_nd / np.maximum(length_n, 1e-30))


def _squared(target_qd, source_sd):
  return (
    (target_qd**2).sum(axis=1)[:, None]
    + (source_sd**2).sum(axis=1)[None]
    - 2 * target_qd @ source_sd.T
  )


def _describer(c, mesh):
  """Function of a data set to its features, as `nearest` takes them."""
  convention = weight_files.convention(c.model.weights)
  network = two_heads.TwoHeads(
    trunk=trunks.TRUNKS[c.model.trunk](c.model),
    target_classes=1,
    source_classes=1,
    convention=convention,
  )
  variables = train.init(network, 0)
  variables = pretrained.load(c.model.weights, variables, convention)
  trunk = {k: v['trunk'] for k, v in variables.items() if 'trunk' in v}

  @jax.jit
  def feature(image_nhwc):
    return network.trunk.apply(trunk, convention(image_nhwc), train=False)

  def describe(dataset):
    with progress.bar(len(dataset), 'features') as bar:
      for block in pipelines.sweep(
        dataset,
        resize=c.train.resize,
        crop=c.train.crop,
        batch=meshes.round_up(c.evaluate.batch, mesh),
        threads=c.threads,
      ):
        feature_bd = jax.device_get(feature(meshes.shard(block.image, mesh)))
        yield block.index[block.valid], feature_bd[block.valid], dict(block.bad)
        bar.update(int((block.index >= 0).sum()))

  return describe


def _key(c, target, source):
  """All that the neighbours depend on, as JSON reads it back."""
  return {
    'target': target.digest,
    'source': source.digest,
    'maximum': c.budget.depth or c.budget.maximum,
    'weights': files.digest(c.model.weights),
    'trunk': c.model.trunk,
    'network': [c.model[k] for k in ('dtype', 'stem', 'variant', 'width')],
    'input': [c.train.resize, c.train.crop, preprocess.PIXELS_VERSION],
  }
