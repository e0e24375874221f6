import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax import checkpoints, mesh, paths
from sjft_jax.errors import UserError
from tests import store


def state(seed, over):
  rng = np.random.default_rng(seed)
  values = {
    'step': jnp.int32(seed),
    'kernel': jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
  }
  return mesh.replicate(values, over)


@pytest.fixture(params=['disk', 'store'])
def directory(request, tmp_path, bucket):
  return tmp_path if request.param == 'disk' else paths.path('gs://b/kept')


def test_latest_comes_back_where_it_belongs(directory):
  over = mesh.make()
  with checkpoints.Checkpoints(directory) as saved:
    assert saved.step is None
    for step in (3, 7):
      saved.save(step, state(step, over), {'round': step})
  one = mesh.make(jax.devices()[:1])
  for target in (over, one):
    with checkpoints.Checkpoints(directory) as saved:
      assert saved.step == 7
      restored, meta = saved.restore(state(0, target))
    assert meta == {'round': 7}
    jax.tree.map(np.testing.assert_array_equal, restored, state(7, over))
    assert restored['kernel'].sharding == state(0, target)['kernel'].sharding


@pytest.mark.parametrize('keep', [1, 2])
def test_older_checkpoints_go(directory, keep):
  over = mesh.make()
  with checkpoints.Checkpoints(directory, keep=keep) as saved:
    for step in (1, 2, 3):
      saved.save(step, state(step, over), {})
  names = (path.name.removesuffix('.tar') for path in directory.iterdir())
  assert len([name for name in names if name.isdigit()]) == keep


def test_a_sharded_state_is_whole_in_a_store(bucket):
  over = mesh.make()
  x = mesh.shard(np.arange(16.0), over)
  with checkpoints.Checkpoints('s3://b/kept') as saved:
    saved.save(1, {'x': x}, {})
  with checkpoints.Checkpoints('s3://b/kept') as saved:
    restored, _ = saved.restore({'x': x})
  np.testing.assert_array_equal(restored['x'], np.arange(16.0))
  assert restored['x'].sharding == x.sharding


def test_a_store_that_takes_nothing_is_one_line(bucket, monkeypatch):
  def fail(*args, **kwargs):
    raise TimeoutError('no answer')

  over = mesh.make()
  with checkpoints.Checkpoints('s3://b/kept') as saved:
    saved.save(1, state(1, over), {})
  monkeypatch.setattr(store.Store, 'put_file', fail)
  with (
    pytest.raises(UserError, match=r'2\.tar cannot be reached'),
    checkpoints.Checkpoints('s3://b/kept') as saved,
  ):
    saved.save(2, state(2, over), {})
  with checkpoints.Checkpoints('s3://b/kept') as saved:
    assert saved.step == 1


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  over = mesh.make(jax.devices()[:1])
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = mesh.replicate(jnp.zeros((512, 512)), over)
  with checkpoints.Checkpoints(tmp_path) as saved:
    for step in range(1, 4):
      x = grow(x)
      saved.save(step, {'x': x}, {})
      for _ in range(20):
        x = grow(x)
    final = x
  with checkpoints.Checkpoints(tmp_path) as saved:
    restored, _ = saved.restore({'x': final})
  np.testing.assert_array_equal(restored['x'], np.full((512, 512), 43))


def test_a_save_that_was_killed_is_not_there(tmp_path):
  over = mesh.make()
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(1, state(1, over), {})
  torn = tmp_path / '2.orbax-checkpoint-tmp'
  torn.mkdir()
  (torn / 'half').write_bytes(b'half')
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.step == 1
    assert saved.restore(state(0, over))[0]['step'] == 1
  assert not torn.exists()


def test_steps_must_grow(tmp_path):
  over = mesh.make()
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(2, state(2, over), {})
    with pytest.raises(ValueError, match='step=2 after'):
      saved.save(2, state(2, over), {})


def test_nothing_to_restore_is_an_error(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match='No checkpoint'),
  ):
    saved.restore(state(0, mesh.make()))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED:\nNo space left on device [28]')

  with checkpoints.Checkpoints(tmp_path) as saved:
    monkeypatch.setattr(saved._manager, 'save', fail)
    with pytest.raises(UserError, match='disk is full') as caught:
      saved.save(1, state(1, mesh.make()), {})
  assert '\n' not in str(caught.value)
