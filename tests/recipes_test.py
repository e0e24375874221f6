import numpy as np
import pytest

from configs import default
from sjft_jax import recipes


def test_distillation_drops_by_its_own_length(monkeypatch):
  c, found = default.get_config(), []
  c.rounds, c.distill.steps = 2, 40
  monkeypatch.setattr(
    recipes.optim, 'step_schedule', lambda *args: found.append(args[1])
  )
  monkeypatch.setattr(
    recipes.train, 'make_step', lambda *args, **settings: None
  )
  for m, steps in ((0, c.train.steps), (c.rounds, c.distill.steps)):
    recipes.make(c, 'a network', (), m, steps, 'a mesh')
  assert found == [[2400], [24]]


@pytest.mark.parametrize(
  ('steps', 'drops'),
  [(4000, {2400: 1, 3200: 1}), (40, {24: 1, 32: 1}), (1, {0: 2})],
)
def test_another_length_than_a_rounds_drops_in_proportion(steps, drops):
  c = default.get_config()
  c.optim.boundaries = 2400, 3200
  schedule = recipes.SCHEDULES['step'](c.optim, 0.5, steps, c.train.steps)
  for update in {0, *drops, *(max(b - 1, 0) for b in drops), steps - 1}:
    fallen = sum(n for b, n in drops.items() if b <= update)
    expected = 0.5 * c.optim.factor**fallen
    np.testing.assert_allclose(schedule(update), expected, rtol=1e-6)


def test_a_cosine_ends_with_its_stage():
  c = default.get_config()
  for steps in (10, 4000):
    schedule = recipes.SCHEDULES['cosine'](c.optim, 0.5, steps, c.train.steps)
    np.testing.assert_allclose(schedule(0), 0.5)
    np.testing.assert_allclose(schedule(steps), 0.0, atol=1e-7)
