"""Every test runs on eight CPU devices, and implicit broadcasts are errors."""

import jax
import pytest

from tests import store

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
  """Of tests, hash tables and what their commands compile, not the user's."""
  with pytest.MonkeyPatch.context() as patch:
    compiled = tmp_path_factory.mktemp('compiled')
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(compiled))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture
def bucket(tmp_path_factory, monkeypatch):
  """An empty store: directory of its objects, for `store.fill`."""
  root = tmp_path_factory.mktemp('store')
  monkeypatch.setenv(store.ROOT, str(root))
  store.register()
  return root
