"""Every shipped config: its settings, its network, and its data sets."""

import functools
import importlib
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from ml_collections import FrozenConfigDict

from configs import default
from configs.paper import caltech, dogs, flowers, indoor
from sjft_jax import arms, learn, prepare, settings
from sjft_jax.data import packaged

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
SHARED = ('__init__.py', 'rows.py')
# File, and what may follow it after a colon.
NAMED = [
  (path.relative_to(CONFIGS).as_posix(), '')
  for path in sorted(CONFIGS.rglob('*.py'))
  if path.name not in SHARED
] + [
  ('folders.py', 'imagenet,places'),
  ('paper/flowers.py', 'selective'),
  ('paper/flowers.py', 'random,selective,fusion'),
  ('paper/caltech.py', '15'),
  ('paper/caltech.py', '30,fine_tuning'),
  ('paper/caltech.py', '45'),
  ('paper/indoor.py', 'places'),
]
TARGET_CLASSES, SOURCE_CLASSES = 7, 11


@functools.cache
def load(name, wanted):
  module = importlib.import_module(
    f'configs.{name.removesuffix(".py").replace("/", ".")}'
  )
  return module.get_config(*[wanted] * bool(wanted))


def singles(c):
  """The settings of every run that the config asks for."""
  if not c.arms:
    return [c]
  arms.check(c)
  trained = [a for a in arms.names(c) if c.arms[a].get('average') is None]
  return [arms.settings_of(c, arm, 0) for arm in trained]


@functools.cache
def answer_shapes(model, crop):
  """Shapes of both heads' answers, by tracing alone; once per network."""
  c = default.get_config()
  c.model.update(model)
  learner = learn.Learner(
    c, TARGET_CLASSES, SOURCE_CLASSES, None, pathlib.Path('nowhere')
  )
  image = jax.ShapeDtypeStruct((2, crop, crop, 3), jnp.uint8)
  init = functools.partial(learner.network.init_with_output, train=False)
  (target, source), _ = jax.eval_shape(init, jax.random.key(0), image, image)
  return target.shape, source.shape


def known_data_sets():
  with warnings.catch_warnings():
    # TFDS warns of TensorFlow, which it can do without.
    warnings.simplefilter('ignore')
    import tensorflow_datasets as tfds

    listed = tfds.list_builders(with_community_datasets=False)
  return {*listed, *prepare.NAMES}


@pytest.mark.parametrize(('name', 'wanted'), NAMED)
def test_a_config_makes_sense(name, wanted):
  for c in singles(load(name, wanted)):
    settings.check(c)
    # What its weights want is read from them, and they are not here.
    model = FrozenConfigDict(c.model.to_dict() | {'weights': ''})
    shapes = answer_shapes(model, c.train.crop)
    assert shapes == ((2, TARGET_CLASSES), (2, SOURCE_CLASSES))


@pytest.mark.parametrize(('name', 'wanted'), NAMED)
def test_a_config_names_data_sets_that_exist(name, wanted):
  known = {'tfds': known_data_sets(), 'packaged': set(packaged.SETS)}
  for c in singles(load(name, wanted)):
    for spec in (c.target, *c.source.values()):
      assert spec.kind == 'folder' or spec.name in known[spec.kind]


@pytest.mark.parametrize(('name', 'wanted'), NAMED)
def test_a_config_says_how_it_is_run(name, wanted):
  text = (CONFIGS / name).read_text(encoding='utf-8')
  assert f'--config=configs/{name}' in text.partition('"""\n\n')[0]


@pytest.mark.parametrize('target', [dogs, flowers, indoor, caltech])
def test_published_numbers_are_those_of_the_docstring(target):
  tables = target.PUBLISHED
  said = re.findall(r'\b\d\d\.\d\b', target.__doc__)
  if target is caltech:
    rows = {name for table in tables.values() for name in table}
    for name in rows:
      row = re.search(rf'\n  {name} +(\d.*)', target.__doc__)[1].split()
      assert row == [str(table[name]) for table in tables.values()]
    return
  for name, value in tables.items():
    assert re.search(rf'\b{name} +{value}\b', target.__doc__), name
  # The release's own number of one row is said, too.
  assert len(said) == len(tables) + (target is flowers)
  c = target.get_config()
  shown = {a: c.arms[a].get('published') for a in c.arms}
  assert {a: v for a, v in shown.items() if v} == tables


def test_rows_differ_from_each_other():
  runs = [c.to_json() for c in singles(load('paper/flowers.py', ''))]
  assert len(set(runs)) == len(runs)


def test_an_unknown_row_is_refused():
  with pytest.raises(ValueError, match=r'Rows are fine_tuning.*, not best'):
    flowers.get_config('best')


ROOT = CONFIGS.parent
DOCUMENTS = [
  path.relative_to(ROOT).as_posix()
  for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_the_documents_name_settings_and_configs_that_exist(name):
  text = (ROOT / name).read_text(encoding='utf-8')
  flat = traverse_util.flatten_dict(default.get_config().to_dict(), sep='.')
  flat = {re.sub(r'^source\.main\.', 'source.NAME.', key) for key in flat}
  for setting in re.findall(r'--config\.([\w.]+)', text):
    assert re.sub(r'^source\.\w+\.', 'source.NAME.', setting) in flat, setting
  for config in re.findall(r'--config=configs/([\w/]+\.py)', text):
    assert (CONFIGS / config).exists(), config
