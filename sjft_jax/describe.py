"""Images -> filter responses -> histograms, as a stream of blocks.

The edges of the histograms come from the target set alone; the same describer
then describes target and source.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sjft_jax import files, processes, progress
from sjft_jax import mesh as meshes
from sjft_jax.data import pipelines
from sjft_jax.errors import UserError
from sjft_jax.models import conv_bank
from sjft_jax.ops import (
  divergence,
  gabor,
  groups,
  histograms,
  quantiles,
  release_edges,
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
  """A frozen filter bank, with the images it wants.

  responses: uint8 RGB [n, crop, crop, 3] -> a list of maps, float32
    [n, h, w, channels]; pure and jit-able. The order of a map's points is of
    no consequence, as long as it is the same for every image.
  layer_c: layer of every channel of all maps in turn, int32 [c].
  names: what the channels are called, in the same order.
  resize: side in pixels to which images are resized, aspect not kept.
  crop: side in pixels of the centre that is kept.
  reduced: JPEGs are decoded at a part of their size, if that is enough.
  """

  responses: Callable
  layer_c: np.ndarray
  names: tuple[str, ...]
  resize: int
  crop: int
  reduced: bool = False

  @functools.cached_property
  def shapes(self):
    """(h, w, channels) of every map."""
    return _shapes(self.responses, self.crop)


def _gabor(c):
  resize, crop = _sides(c, 256, 224)
  responses, names = gabor.make_responses(crop, c.decimate)
  return Bank(
    responses=responses,
    # One layer, whatever the number of maps.
    layer_c=np.zeros(len(names), np.int32),
    names=names,
    resize=resize,
    crop=crop,
  )


def _conv(c):
  responses, layers, wanted = conv_bank.load(
    c.weights, tuple(c.layers), c.activation
  )
  resize, crop = _sides(c, wanted.resize, wanted.crop)
  channels = [c for _, _, c in _shapes(responses, crop)]
  return Bank(
    responses=responses,
    layer_c=np.repeat(np.arange(len(layers), dtype=np.int32), channels),
    names=tuple(
      f'{layer}, kernel {i}'
      for layer, n in zip(layers, channels, strict=True)
      for i in range(n)
    ),
    resize=resize,
    crop=crop,
  )


def _sides(c, resize, crop):
  """The settings' sides in pixels; those of the bank where they are 0."""
  resize, crop = c.resize or resize, c.crop or crop
  if not 0 < crop <= resize:
    raise UserError(
      f'describe.crop must be 1..describe.resize ({resize}), not {crop}.'
    )
  return resize, crop


def _shapes(responses, crop):
  """(h, w, channels) of every map."""
  image = jax.ShapeDtypeStruct((1, crop, crop, 3), np.uint8)
  return [r.shape[1:] for r in jax.eval_shape(responses, image)]


BANKS = {'gabor': _gabor, 'conv': _conv}


def load_bank(c) -> Bank:
  """The bank that the `describe` settings name.

  Raises:
    UserError: if there is no such bank, or its settings do not fit.
  """
  if c.bank not in BANKS:
    raise UserError(
      f'describe.bank is one of {", ".join(BANKS)}, not {c.bank!r}.'
    )
  return dataclasses.replace(BANKS[c.bank](c), reduced=c.reduced)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """Described images of one stretch of a data set.

  index_n: their positions, int64 [n], ascending.
  counts_nd: pixels in each bin, int32 [n, d], d = channels x bins.
  stop: every position below it has been seen, unless they are read again.
  bad: (position, reason) of the images that could not be decoded.
  """

  index_n: np.ndarray
  counts_nd: np.ndarray
  stop: int
  bad: list


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Describer:
  """A bank and the edges of its histograms.

  edges_cb: float32 [c, bins - 1], ascending.
  lower_c, upper_c: smallest and largest response in the target set.
  batch: images described at a time; threads: decoding threads.
  waited: seconds that `blocks` of this very describer has waited for images
    to be decoded, and for the devices.
  """

  bank: Bank
  edges_cb: np.ndarray
  lower_c: np.ndarray
  upper_c: np.ndarray
  mesh: jax.sharding.Mesh
  batch: int
  threads: int
  # Not of its replacements.
  waited: dict = dataclasses.field(
    init=False, default_factory=lambda: {'images': 0.0, 'devices': 0.0}
  )

  @property
  def bins(self):
    """Bins per channel."""
    return self.edges_cb.shape[1] + 1

  @functools.cached_property
  def pixels_d(self):
    """Pixels in the map of each bin's channel, float64 [d]."""
    pixels = [np.full(c, h * w, np.float64) for h, w, c in self.bank.shapes]
    return np.repeat(np.concatenate(pixels), self.bins)

  @functools.cached_property
  def weight_d(self):
    """1 / (filters of the layer) for each bin, float64 [d]. Source: eq. 2."""
    layer_c = self.bank.layer_c
    return np.repeat(1 / np.bincount(layer_c)[layer_c], self.bins)

  def fractions(self, counts_nd):
    """Histograms of counts: each channel's bins sum to 1, float64 [n, d]."""
    return counts_nd / self.pixels_d[None]

  def logs(self, counts_nd):
    """log(p + e) of counts, float64 [n, d]."""
    return np.log(self.fractions(counts_nd) + divergence.EPSILON)

  def log_error(self):
    """Largest error of float32 log(p + e) on the devices, nats.

    Measured over every count that can occur, and doubled, since a fused
    kernel may round once more than this one.
    """
    error = 0.0
    for pixels in np.unique(self.pixels_d):
      count = np.arange(pixels + 1)
      # As `ops.screen` has it.
      fraction = jnp.asarray(count, jnp.float32) * jnp.float32(1 / pixels)
      log = jax.jit(jnp.log)(fraction + divergence.EPSILON)
      exact = np.log(count / pixels + divergence.EPSILON)
      error = max(error, np.abs(meshes.fetch(log) - exact).max())
    return 2 * error

  @functools.cached_property
  def counts(self):
    """Jitted: uint8 [n, crop, crop, 3] -> counts int32 [n, d], split by n."""
    channels = [c for _, _, c in self.bank.shapes]
    edges = np.split(self.edges_cb, np.cumsum(channels)[:-1])

    def counts(image_nhwc):
      maps = self.bank.responses(image_nhwc)
      return jnp.concatenate(
        [
          histograms.histogram(r, e).reshape(len(image_nhwc), -1)
          for r, e in zip(maps, edges, strict=True)
        ],
        axis=1,
      )

    # On a CPU responses are counted while they lie in its cache, which is twice
    # as fast.
    return _over_devices(_in_groups(counts, self.bank), self.mesh)

  def blocks(self, dataset, *, rows=1024):
    """Describes a data set in order.

    Args:
      dataset: what to describe.
      rows: images per block, at most; a block is cut at whole batches.

    Yields:
      `Block`s; a last, shorter one.
    """
    pending = []
    parts = _sweep(dataset, self.bank, self.batch, self.threads)
    for part in _timed(parts, self.waited, 'images'):
      pending.append((part, self.counts(meshes.shard(part.image, self.mesh))))
      if sum(len(p.index) for p, _ in pending) + len(part.index) > rows:
        yield self._block(pending)
        pending = []
    if pending:
      yield self._block(pending)

  def _block(self, pending) -> Block:
    index = np.concatenate([part.index for part, _ in pending])
    valid = np.concatenate([part.valid for part, _ in pending])
    counts = _timed(
      (meshes.fetch(counts) for _, counts in pending), self.waited, 'devices'
    )
    return Block(
      index_n=index[valid],
      counts_nd=np.concatenate(list(counts))[valid],
      stop=int(index.max()) + 1,
      bad=[entry for part, _ in pending for entry in part.bad],
    )

  def save(self, path, shared=False):
    """Writes edges.npz, if this is the first process; see `files.replacing`."""
    if not processes.first():
      return
    with files.replacing(path, shared=shared) as file:
      np.savez(
        file,
        edges=self.edges_cb,
        lower=self.lower_c,
        upper=self.upper_c,
        layer=self.bank.layer_c,
      )


def _sweep(dataset, bank, batch, threads):
  return pipelines.sweep(
    dataset,
    resize=bank.resize,
    crop=bank.crop,
    batch=batch,
    threads=threads,
    reduced=bank.reduced,
  )


def _in_groups(function, bank):
  """A function of images, applied to groups of them of one size.

  Then neither the batch nor the number of devices changes what one comes to.
  """

  def in_groups(image_nhwc):
    return groups.over(function, image_nhwc, groups.size(bank.shapes))

  return in_groups


def _over_devices(function, mesh):
  """Jitted; nothing of an image ever leaves its device."""
  split = PartitionSpec(meshes.AXIS)
  return jax.jit(
    jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)
  )


def _whole_batch(batch, bank, mesh):
  """The least batch of which every device has whole groups."""
  least = mesh.size * groups.size(bank.shapes)
  return -(-batch // least) * least


def _timed(items, seconds, name):
  """Yields the items, adding the time they take to `seconds[name]`."""
  items = iter(items)
  while True:
    start = time.monotonic()
    try:
      item = next(items)
    except StopIteration:
      return
    finally:
      seconds[name] += time.monotonic() - start
    yield item


# How the bins follow from the target set: (function, passes over the set).
BINNINGS = {
  'paper': (quantiles.streaming_edges, len(quantiles.LEVELS)),
  'caffe': (release_edges.streaming_edges, release_edges.PASSES),
}


def fit(
  bank, target, *, bins, mesh, batch, threads, binning='paper', partly=False
) -> Describer:
  """A describer whose bins follow from the target set's pixels.

  Processes that work together each read a share of the set, and come to the
  same edges.

  Args:
    bank: the filter bank.
    target: data set of the target training images.
    bins: bins per channel.
    mesh: this process's devices.
    batch: images at a time, at least; every device has whole groups of them.
    threads: decoding threads, 0 for one per core.
    binning: 'paper' for bins of equal mass, 'caffe' for the release's rule.
    partly: pass over what is no image, or is not there. Without it every image
      must be readable.

  Returns:
    The describer. Its edges are exact, whatever the size of the set: order
    statistics or cells found by counting, not a sketch.

  Raises:
    UserError: if responses are not numbers, bins < 2, there is no such binning,
      an image cannot be read now, or others than in an earlier pass.
  """
  if binning not in BINNINGS:
    raise UserError(
      f'describe.binning is one of {", ".join(BINNINGS)}, not {binning!r}.'
    )
  streaming_edges, passes = BINNINGS[binning]
  batch = _whole_batch(batch, bank, mesh)
  # On a CPU an image's responses never depend on the others.
  on_cpu = jax.default_backend() == 'cpu'
  responses = _over_devices(
    bank.responses if on_cpu else _in_groups(bank.responses, bank), mesh
  )

  index, count = meshes.share()
  if len(target) < count:
    raise UserError(
      f'Every process reads a share of the images that give the edges: '
      f'{len(target)} are too few for {count} processes. Start fewer.'
    )
  mine = target.subset(np.arange(index, len(target), count))
  bar = progress.bar(passes * len(mine), 'edges')
  lost = []  # of every pass, {position: why} of what could not be read

  def blocks():
    lost.append({})
    for part in _sweep(mine, bank, batch, threads):
      lost[-1].update(part.bad)
      for i, reason in part.bad:
        pipelines.refuse_transient(mine.ids[i], reason)
        if not partly:
          raise UserError(_missing(mine.ids[i], reason))
      yield responses(meshes.shard(part.image, mesh)), part.valid
      bar.update(int((part.index >= 0).sum()))
    # Ranks among the pixels of some images are none among those of others.
    for i in lost[-1].keys() ^ lost[0].keys():
      reason = lost[-1].get(i, 'it can be read again')
      raise UserError(_missing(mine.ids[i], reason))

  try:
    with bar:
      edges_cb, lower_c, upper_c = streaming_edges(
        blocks, bins, meshes.over_processes
      )
  except ValueError as error:
    # Of a bank's responses only those of broken weights are not numbers.
    raise UserError(f'{error} Look at describe.weights and bins.') from error
  return Describer(
    bank=bank,
    edges_cb=edges_cb,
    lower_c=lower_c,
    upper_c=upper_c,
    mesh=mesh,
    batch=batch,
    threads=threads,
  )


def _missing(name, reason):
  return (
    f'{name}: {reason}. The bins need every image, and the same throughout: '
    'restore it, then give the same command again.'
  )


def load(path, bank, *, mesh, batch, threads) -> Describer:
  """The describer whose edges `Describer.save` wrote.

  Args:
    path: of the edges.npz.
    bank: `Bank`; that the edges are of its channels is not checked.
    mesh: the devices that describe images.
    batch: images described at a time, rounded up as `fit` does.
    threads: that decode; 0 = one per CPU.

  Raises:
    UserError: if it cannot be read, or is no such file.
  """
  try:
    stored = files.read_npz(path)
    edges_cb, lower_c, upper_c = (
      stored[name] for name in ('edges', 'lower', 'upper')
    )
    if edges_cb.ndim != 2:
      raise ValueError(f'edges are [channels, bins - 1], not {edges_cb.shape}')
  except files.NO_NPZ as error:
    raise UserError(f'{path} could not be read: {error}') from error
  return Describer(
    bank=bank,
    edges_cb=edges_cb,
    lower_c=lower_c,
    upper_c=upper_c,
    mesh=mesh,
    batch=_whole_batch(batch, bank, mesh),
    threads=threads,
  )
