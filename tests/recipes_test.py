import numpy as np
import pytest

from configs import default
from sjft_jax import recipes


def test_a_recipe_drops_by_its_own_length():
  c = default.get_config()
  for m, steps, drop in ((0, c.train.steps, 2400), (2, 40, 24)):
    rate = recipes.fine_tuning(c, (), steps, m).schedule
    assert rate(drop) == pytest.approx(c.optim.factor * rate(drop - 1))
    assert rate(drop - 1) == rate(0) == pytest.approx(c.optim.learning_rate)


def test_stages_with_equal_settings_are_compiled_once():
  c = default.get_config()
  c.pretrain.steps, c.optim.round_factors = 30, (1.0, 0.5)
  first, second, third = (recipes.fine_tuning(c, (), 9, m) for m in range(3))
  assert first != second
  assert second == third
  assert second != recipes.fine_tuning(c, ('source_head',), 9, 1)
  assert recipes.pretraining(c, ()) == recipes.pretraining(c, ())


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
