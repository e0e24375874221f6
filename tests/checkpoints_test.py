import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax import checkpoints, mesh
from sjft_jax.errors import UserError


def state(seed, over):
  rng = np.random.default_rng(seed)
  values = {
    'step': jnp.int32(seed),
    'kernel': jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
  }
  return mesh.replicate(values, over)


def test_latest_comes_back_where_it_belongs(tmp_path):
  over = mesh.make()
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.step is None
    for step in (3, 7):
      saved.save(step, state(step, over), {'round': step})
  one = mesh.make(jax.devices()[:1])
  for target in (over, one):
    with checkpoints.Checkpoints(tmp_path) as saved:
      assert saved.step == 7
      restored, meta = saved.restore(state(0, target))
    assert meta == {'round': 7}
    jax.tree.map(np.testing.assert_array_equal, restored, state(7, over))
    assert restored['kernel'].sharding == state(0, target)['kernel'].sharding


@pytest.mark.parametrize('keep', [1, 2])
def test_older_checkpoints_go(tmp_path, keep):
  over = mesh.make()
  with checkpoints.Checkpoints(tmp_path, keep=keep) as saved:
    for step in (1, 2, 3):
      saved.save(step, state(step, over), {})
  assert len([p for p in tmp_path.iterdir() if p.name.isdigit()]) == keep


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
