"""Every test runs on eight CPU devices, and implicit broadcasts are errors."""

import os

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
    # One for all workers of a session: whoever comes second need not compile.
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
      root = root.parent
    compiled = str(root / 'compiled')
    patch.setenv('JAX_COMPILATION_CACHE_DIR', compiled)
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    jax.config.update('jax_compilation_cache_dir', compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
    yield


@pytest.fixture
def bucket(tmp_path_factory, monkeypatch):
  """An empty store: directory of its objects, for `store.fill`."""
  root = tmp_path_factory.mktemp('store')
  monkeypatch.setenv(store.ROOT, str(root))
  store.register()
  return root
