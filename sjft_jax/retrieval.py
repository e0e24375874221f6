"""The search of a run: its files, its resumption, and opening it again."""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from sjft_jax import (
  certificate,
  describe,
  files,
  guard,
  machine,
  paths,
  processes,
  reuse,
  search,
  streams,
  tables,
  workdirs,
)
from sjft_jax import mesh as meshes
from sjft_jax.data import datasets, preprocess
from sjft_jax.data.dataset import Dataset
from sjft_jax.errors import UserError

# What the edges depend on besides bank and images.
_BINNING = ('bins', 'binning', 'fine_bins')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
  """The search's answer.

  index_qk: source positions, nearest first, int64 [q, k]; -1 where a row
    ends because too few source images are readable.
  unreadable: {source id: why} of the images that could not be decoded.
  """

  index_qk: np.ndarray
  unreadable: dict


def find(c, target, source, directory, *, mesh, donors=()) -> Neighbours:
  """Describes both sets and searches, or reads what an earlier start left.

  Args:
    c: every setting; `describe`, `search`, `budget`, `threads` and
      `max_bad_fraction` are read.
    target: data set of the target training images.
    source: the pool.
    directory: where edges.npz, neighbours.parquet and certificate.json go.
    mesh: the devices.
    donors: directories of finished searches; one of the same data and
      settings is copied instead of searching again.

  Returns:
    The neighbours of every target image, nearest first.

  Raises:
    UserError: if the source is smaller than the depth of the search, the
      directory holds another search, or a finished one is not as it was
      written; or as `search.nearest`.
  """
  directory = paths.path(directory)
  depth = c.budget.depth or c.budget.maximum
  if not 0 < c.budget.initial <= c.budget.maximum <= depth <= len(source):
    raise UserError(
      'Needed 0 < budget.initial <= budget.maximum <= depth of the search <= '
      f'images in the source; came {c.budget.initial}, {c.budget.maximum}, '
      f'{depth}, {len(source)}. Lower the budget (--config.budget.initial, '
      '--config.budget.maximum) or give a larger source.'
    )
  key = _key(c, target, source)
  finished = directory / certificate.NAME

  def is_finished():
    if files.adopt(
      directory, certificate.NAME, donors, lambda donor: _is_like(donor, key)
    ):
      return True
    _claim(directory, key)
    if finished.exists():
      certificate.read(directory)
    return finished.exists()

  # One process decides: another that came later would find a search finished
  # in whose collectives the first one waits.
  if not processes.told(is_finished):
    _search(c, target, source, directory, key, meshes.own(mesh))
  search.clear(directory / 'shards')
  files.wait_for(finished)
  found = tables.read(directory / 'neighbours.parquet', target.ids, source.ids)
  return Neighbours(
    index_qk=found.index_qk,
    unreadable=files.read_json(finished)['unreadable'],
  )


def _is_like(donor, key):
  """Whether a finished search of another run is this one, too.

  Raises:
    UserError: if it is not as it was written.
  """
  try:
    return certificate.key(donor) == key and bool(certificate.read(donor))
  except UserError as error:
    raise UserError(
      f'The search of another run would be taken over from {donor}. {error}'
    ) from error


def _claim(directory, key):
  """Makes sure that edges and shards that are there are of this search.

  What lies there and says of no search that it is its own is removed.

  Raises:
    UserError: if they are of another one.
  """
  begun, now = directory / 'begun.json', {'key': key, 'build': search.BUILD}
  here = machine.described()
  finished = directory / certificate.NAME
  if finished.exists():
    same = certificate.key(directory) == key
    begun.unlink(missing_ok=True)
  elif begun.exists():
    stored = files.read_json(begun)
    other = stored.pop('machine', None) != here
    same = stored == now
    if same and other and not any(directory.glob('shards/shard-*.npz')):
      # No work is lost if it begins anew on this kind.
      paths.remove_tree(directory)
      files.write_json(begun, now | {'machine': here})
  else:
    # What a build without this file began.
    paths.remove_tree(directory)
    same = not any((directory / n).exists() for n in ('edges.npz', 'shards'))
    if same:
      files.write_json(begun, now | {'machine': here})
  if not same:
    raise UserError(
      f'{directory} holds a search of other images, edges or filter weights, '
      'or of another build. Restore them, or choose another --workdir.'
    )


def _search(c, target, source, directory, key, mesh):
  """This process's share of the search; the first process writes the files."""
  # A cache is of the whole source, whatever is withheld for this target.
  whole = source.whole or source
  # One cache for all processes; whether they describe alike, shards tell.
  # Files that were written since are others, whatever they are called.
  made = processes.told(lambda: [machine.described(), *whole.stamps])
  fine = None
  if c.describe.fine_bins:
    fine = _open_fine(c, whole, mesh, made)
  describer = open_describer(c, directory, mesh, fit_on=target, fine=fine)
  described = streams.Described(describer, target)
  kept = fine or describer
  stream = streams.Described(kept, whole)
  if c.search.cache:
    stream = streams.Cached(
      kept, whole, c.search.cache, _cache_key(c, kept, whole, made)
    )
  if source.whole:
    stream = streams.Within(stream, source.place)
  if fine:
    stream = reuse.Merged(stream, describer)
  found = search.nearest(
    described,
    stream,
    k=c.budget.depth or c.budget.maximum,
    mesh=mesh,
    directory=directory / 'shards',
    share=meshes.share(),
    # A batch is never split.
    rows=max(search.ROWS, kept.batch),
    target_parts=c.search.target_parts,
    rank=None if c.search.rank < 0 else c.search.rank,
    operands=c.search.operands,
    max_bad_fraction=c.max_bad_fraction,
  )
  if source.whole:
    found = _in_places(found, source.place)
  waited = kept.waited
  print(
    f'The search waited {waited["images"]:.1f} s for images to be decoded and '
    f'{waited["devices"]:.1f} s for their histograms.'
  )
  if processes.first():
    tables.write(
      directory / 'neighbours.parquet', found.table, target.ids, source.ids
    )
    certificate.write(
      directory,
      key=key,
      found=found,
      describer=describer,
      target=target,
      source=source,
    )
    (directory / 'begun.json').unlink(missing_ok=True)


def _in_places(found, place):
  """What was found in the whole source, by positions in what is left of it."""
  index_qk = found.table.index_qk
  at_qk = np.searchsorted(place, index_qk)
  table = tables.Table(
    found.table.distance_qk, np.where(index_qk >= 0, at_qk, -1)
  )
  # Ascending places: order, ties and what is next to what stay as they were.
  return dataclasses.replace(
    found,
    table=table,
    times_s=found.times_s[place],
    bad={int(np.searchsorted(place, i)): why for i, why in found.bad.items()},
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Search:
  """A finished search, opened again.

  settings: of its run.
  target, source: the data sets, as they were searched.
  describer: that described both.
  table: of the neighbours.
  certificate: that vouches for them.
  """

  settings: ConfigDict
  target: Dataset
  source: Dataset
  describer: describe.Describer
  table: tables.Table
  certificate: dict


def reopen(workdir, mesh) -> Search:
  """The finished search of a run.

  Args:
    workdir: directory of the run.
    mesh: the devices.

  Raises:
    UserError: if there is none, or files or images are not as they were.
  """
  workdir = paths.path(workdir)
  directory = workdir / 'selection'
  stored = certificate.read(directory)
  c = workdirs.settings_of(workdir)
  target, _ = datasets.open_target(c.target, c.seed, testing=False)
  source = guard.remaining(datasets.open_pool(c.source), workdir)
  with files.opened(directory / 'neighbours.parquet') as file:
    rows = pq.read_table(file, columns=['target_id'])
  searched = set(pc.unique(rows['target_id']).to_pylist())
  target = target.subset(
    [i for i, name in enumerate(target.ids.tolist()) if name in searched]
  )
  if _key(c, target, source) != stored['key']:
    raise UserError(
      f'The images or filter weights are not those of the search in '
      f'{directory}, or it was made by a build that decoded otherwise. Restore '
      'them, or choose another --workdir.'
    )
  return Search(
    settings=c,
    target=target,
    source=source,
    describer=open_describer(c, directory, mesh),
    table=tables.read(directory / 'neighbours.parquet', target.ids, source.ids),
    certificate=stored,
  )


def _open_fine(c, source, mesh, made):
  """The describer of the source's fine bins, kept in the cache."""
  bank = describe.load_bank(c.describe)
  run_on = dict(mesh=mesh, batch=c.describe.batch, threads=c.threads)
  parts = [source.digest, c.describe.fine_bins, *_bank_parts(c)]
  key = _digest([*parts, made])
  edges = pathlib.Path(c.search.cache).expanduser() / f'{key}.edges.npz'
  if processes.told(edges.exists):
    return describe.load(edges, bank, **run_on)
  fine = reuse.fit_fine(bank, source, bins=c.describe.fine_bins, **run_on)
  fine.save(edges, shared=True)
  return fine


def open_describer(c, directory, mesh, fit_on=None, fine=None):
  """The describer of a search, from its edges or newly fitted.

  Args:
    c: every setting; `describe` and `threads` are read.
    directory: of the search; edges.npz lies there, or is written there.
    mesh: the devices.
    fit_on: data set of the target training images, where there are no edges.
    fine: describer among whose edges new ones are chosen; None for any.

  Raises:
    UserError: if describe.edges names a file that does not fit the bank.
  """
  bank = describe.load_bank(c.describe)
  run_on = dict(mesh=mesh, batch=c.describe.batch, threads=c.threads)
  edges = directory / 'edges.npz'
  if processes.told(edges.exists):
    return describe.load(edges, bank, **run_on)
  if c.describe.edges:
    describer = _given_edges(c, bank, run_on)
  else:
    describer = describe.fit(
      bank,
      fit_on,
      bins=c.describe.bins,
      binning=c.describe.binning,
      **run_on,
    )
  if fine:
    describer = reuse.snap(describer, fine)
  describer.save(edges)
  return describer


def _given_edges(c, bank, run_on):
  needed = len(bank.layer_c), c.describe.bins
  try:
    describer = describe.load(c.describe.edges, bank, **run_on)
  except UserError as error:
    raise UserError(
      f'describe.edges needs an edges.npz of another run; {error}'
    ) from error
  came = len(describer.edges_cb), describer.bins
  if came != needed:
    raise UserError(
      f'describe.edges needs edges of {needed[0]} channels and {needed[1]} '
      f'bins; {c.describe.edges} has {came[0]} and {came[1]}. Take those of a '
      'run with the same describe settings.'
    )
  return describer


def _key(c, target, source):
  """Digest of all that the neighbours depend on."""
  binning = [c.describe[k] for k in _BINNING]
  depth = c.budget.depth or c.budget.maximum
  parts = [target.digest, source.digest, depth, *_bank_parts(c)]
  parts.append(binning)
  if c.describe.fine_bins:  # They are chosen by the whole source.
    parts.append((source.whole or source).digest)
  if c.describe.edges:
    parts.append(files.digest(c.describe.edges))
  return _digest(parts)


def _cache_key(c, describer, source, made):
  """Digest of all that the source's counts depend on; the bins are edges.

  `made` is on what kind of machine, as on others they may differ in single
  pixels, and of files of what times.
  """
  edges = np.ascontiguousarray(describer.edges_cb, '<f4').tobytes()
  parts = [source.digest, hashlib.sha256(edges).hexdigest(), *_bank_parts(c)]
  return _digest([*parts, made])


def _bank_parts(c):
  free = (*_BINNING, 'batch', 'edges', 'weights')
  settings = {k: v for k, v in c.describe.items() if k not in free}
  parts = [preprocess.PIXELS_VERSION, settings]
  if c.describe.weights:
    parts.append(files.digest(c.describe.weights))
  return parts


def _digest(parts):
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
