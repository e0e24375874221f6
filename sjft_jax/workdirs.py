"""The directory of a run: whose it is, what is finished, how long it took."""

import contextlib
import importlib.metadata
import json
import re
import time

import jax
from ml_collections import ConfigDict

from sjft_jax import files, paths, processes
from sjft_jax.errors import UserError

# These cannot change a result, so a resumed run may change them.
FREE = frozenset(
  {
    'threads',
    'guard.cache',
    'max_bad_fraction',
    'search.cache',
    'search.rank',
    'search.target_parts',
    'search.operands',
    'processes.heartbeat',
    'processes.shutdown',
    'processes.connect',
  }
)
# Of an arm, what is only shown.
_SHOWN = re.compile(r'arms\.[^.]+\.(title|published)')
# All that a start leaves before its first stage has worked: a start that was
# refused for its settings does not bind the next one to them.
UNBOUND = frozenset(
  {
    'config.json',
    'data.json',
    'seconds.json',
    'bad_images.csv',
    'guard',
    'begun.json',
  }
)
PACKAGES = ('sjft-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


@contextlib.contextmanager
def held(workdir):
  """Keeps other starts out of the directory of a run during the block.

  Those of this machine: on a shared file system the lock of a machine that
  died could keep out the one that goes on.

  Args:
    workdir: the directory; made when it is missing.

  Raises:
    UserError: if another process holds it.
  """
  workdir = paths.path(workdir)
  if paths.in_store(workdir) or workdir.is_file():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  busy = (
    f'{workdir} is in use: another process runs the command there. Wait until '
    'it ends, or end it.'
  )
  with files.locked(workdir, busy):
    yield


def claim(workdir, settings):
  """Makes `workdir` the directory of a run with these settings.

  A directory that already is one, with the same settings, is resumed. If no
  stage has left anything in it, other settings begin it anew.

  Args:
    workdir: the directory; made when it is missing.
    settings: every resolved setting, nested dict of JSON values.

  Returns:
    Whether something that is only shown has changed, for `show_anew` to write.

  Raises:
    UserError: if it holds anything else, or a run with other settings.
  """
  workdir = paths.path(workdir)
  config = workdir / 'config.json'
  # As JSON reads them back: tuples are lists.
  settings = json.loads(json.dumps(settings))
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir must be a directory; {workdir} is a file.')
  if config.exists():
    stored = settings_of(workdir).to_dict()
    changed = _changes(stored, settings)
    if not changed:
      return _shown(stored) != _shown(settings)
    made = [name for name, _ in paths.below(workdir)]
    if any(UNBOUND.isdisjoint(name.split('/')) for name in made):
      raise UserError(
        f'{workdir} holds a run with other settings: {"; ".join(changed)}. '
        'Choose another --workdir, or the settings it was made with.'
      )
    # By config.json a later start knows what this is, should this one be
    # killed meanwhile.
    # The marks of finished stages first, so that none outlives its stage.
    for name in sorted(made, key=lambda name: not name.endswith('.json')):
      if name != config.name:
        (workdir / name).unlink()
    # A run below would not be begun in a directory that is there already.
    for below in () if paths.in_store(workdir) else list(workdir.iterdir()):
      if below != config:
        paths.remove_tree(below)
  elif workdir.exists() and any(
    not path.name.startswith('.') for path in workdir.iterdir()
  ):
    raise UserError(
      f'{workdir} holds files but no config.json, so it is not the directory '
      'of a run. Choose a new or empty --workdir.'
    )
  files.write_json(config, {'settings': settings, **provenance()})
  return False


def settings_of(workdir) -> ConfigDict:
  """Every setting of the run in a directory, as its config.json has them.

  Args:
    workdir: the directory.

  Raises:
    UserError: if it has no config.json, or one of something else.
  """
  config = paths.path(workdir) / 'config.json'
  try:
    return ConfigDict(dict(files.read_json(config, {})['settings']))
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{config} is not the config.json of a run. Choose another --workdir.'
    ) from error


def _changes(old, new):
  """What differs, but for the settings that are free."""
  old, new = _flat(old), _flat(new)
  return [
    f'{name} was {old.get(name)!r}, now {new.get(name)!r}'
    for name in sorted(old.keys() | new.keys())
    if not _is_free(name, old, new) and old.get(name) != new.get(name)
  ]


def _is_free(name, old, new):
  # Of an arm that takes all as it is, the title is all there is.
  arm = _SHOWN.fullmatch(name) and f'{name.rpartition(".")[0]}.title'
  return name in FREE or bool(arm and arm in old and arm in new)


def _shown(settings):
  """What is only shown, by its name."""
  flat = _flat(json.loads(json.dumps(settings)))
  return {name: value for name, value in flat.items() if _SHOWN.fullmatch(name)}


def show_anew(workdir, settings):
  """Writes down what is only shown, as it is in these settings."""
  config = paths.path(workdir) / 'config.json'
  value, shown = files.read_json(config), _shown(settings)
  if _shown(value['settings']) == shown:
    return
  for arm, spec in value['settings']['arms'].items():
    for name in 'title', 'published':
      spec.pop(name, None)
      if f'arms.{arm}.{name}' in shown:
        spec[name] = shown[f'arms.{arm}.{name}']
  files.write_json(config, value)


def provenance():
  """On what a result was made: {'device': ..., 'versions': {package: ...}}."""
  return {
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'versions': {p: importlib.metadata.version(p) for p in PACKAGES},
  }


def _flat(settings, prefix=''):
  """{'group.field': value} of nested settings; an empty group is a value."""
  flat = {}
  for name, value in settings.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def reached(workdir) -> str:
  """What the next start goes on from, in words.

  Args:
    workdir: of a run; or of a comparison, of which the run begun last counts.
  """
  workdir = paths.path(workdir)
  if paths.in_store(workdir):
    return 'what is saved'  # Asking a store takes time that there may not be.
  # Those of a comparison lie two deeper.
  begun = [
    (path.stat().st_mtime, path.parent)
    for path in workdir.glob('*/*/config.json')
  ]
  directory = max(begun)[1] if begun else workdir
  of = f' of {directory.name}' if begun else ''
  return f'{_reached(directory)}{of}'


def _reached(directory):
  rounds = sorted(
    (int(path.name) for path in directory.glob('rounds/[0-9]*')), reverse=True
  )
  for part, name in (
    ('distilled', 'distillation'),
    *((f'rounds/{m}', f'round {m}') for m in rounds),
    ('pretrain', 'pretraining'),
  ):
    steps = [
      int(path.name)
      for path in directory.glob(f'{part}/checkpoint/*')
      # What is being written has another name.
      if re.fullmatch('[0-9]+', path.name)
    ]
    if steps:
      return f'{name}, update {max(steps)}'
  for path, name in (
    ('pretrain/trunk.safetensors', 'the pretrained trunk'),
    ('selection/neighbours.parquet', 'the neighbours'),
    ('selection/edges.npz', 'the edges'),
    ('guard/record.json', 'the guard'),
  ):
    if (directory / path).exists():
      return name
  return 'the beginning'


class Clock:
  """Seconds per stage, summed over restarts, in seconds.json.

  Of several processes, the first one's.

  Args:
    workdir: the directory of the run.
  """

  def __init__(self, workdir):
    self._path = paths.path(workdir) / 'seconds.json'
    self.seconds = files.read_json(self._path, {})

  @contextlib.contextmanager
  def __call__(self, stage):
    """Adds the time of the block to `stage`, also when it is interrupted."""
    start = time.monotonic()
    try:
      yield
    finally:
      spent = self.seconds.get(stage, 0) + time.monotonic() - start
      self.seconds[stage] = round(spent, 2)
      if processes.first():
        files.write_json(self._path, self.seconds)
