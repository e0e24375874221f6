import pytest

from configs import default
from sjft_jax import settings
from sjft_jax.errors import UserError


@pytest.mark.parametrize(
  ('name', 'value', 'said'),
  [
    ('selection', 'best', 'neighbours'),
    ('model.stem', 'big', 'imagenet'),
    ('model.dtype', 'float64', 'bfloat16'),
    ('model.width', 0.001, 'at least'),
    ('train.steps', 0, 'at least 1'),
    ('train.crop', 257, r'256 \(train.resize\)'),
    ('budget.initial', 1001, r'1000 \(budget.maximum\)'),
    ('optim.momentum', 1.0, 'below 1'),
    ('optim.learning_rate', float('nan'), 'above 0'),
    ('train.target_weight', float('nan'), 'at least 0'),
    ('optim.boundaries', ('late',), 'numbers of updates'),
    ('max_bad_fraction', 5.0, 'at most 1'),
    ('model.averages', 'none', 'target'),
    ('optim.rule', 'lamb', 'adamw'),
    ('hardness.views', 'all', 'dense'),
    ('train.label_smoothing', 1.0, 'below 1'),
    ('optim.round_factors', (), 'factors'),
    ('evaluate.scales', (1.0, 0.0), 'factors'),
    ('distill.temperature', 0.0, 'above 0'),
    ('budget.depth', 999, r'1000 \(budget.maximum\)'),
    ('train.source_batch', 5, r'10 \(train.target_batch\)'),
    ('model.width', float('nan'), 'at least'),
    ('model.width', float('inf'), 'at least'),
    ('evaluate.scales', ('a',), 'factors'),
    ('evaluate.scales', (float('inf'),), 'factors'),
    ('optim.round_factors', ('a',), 'factors'),
    ('optim.frozen', (3,), 'names of parameters'),
    ('optim.learning_rate', float('inf'), 'above 0'),
    ('hardness.add_wrong', float('inf'), 'at least 0'),
    ('budget.maximum', 2**40, 'at most'),
    ('seed', 2**64, 'at most'),
  ],
)
def test_what_could_only_fail_is_refused(name, value, said):
  c = default.get_config()
  c.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=f'{name} must be.*{said}.*, not '):
    settings.check(c)


def test_every_fault_is_named_at_once():
  c = default.get_config()
  c.train.steps, c.model.trunk = -1, 'vgg'
  with pytest.raises(UserError, match=r'model\.trunk.*; train\.steps'):
    settings.check(c)


def test_a_warm_up_must_end_before_pretraining_does():
  c = default.get_config()
  c.pretrain.steps = c.pretrain.warmup
  with pytest.raises(UserError, match=r'pretrain\.warmup must be below 20'):
    settings.check(c)


def test_a_rate_that_falls_by_steps_has_no_warm_up():
  c = default.get_config()
  c.optim.warmup = 5
  with pytest.raises(UserError, match=r'optim\.warmup must be 0 with .*step'):
    settings.check(c)
  c.optim.schedule = 'cosine'
  settings.check(c)


def test_a_cosine_needs_updates_after_its_warm_up():
  c = default.get_config()
  c.optim.schedule, c.optim.warmup = 'cosine', c.train.steps
  with pytest.raises(UserError, match=r'optim\.warmup must be below 4000'):
    settings.check(c)


def test_a_plain_trunk_has_one_width():
  c = default.get_config()
  c.model.trunk = 'squeezenet_v1_0'
  settings.check(c)
  c.model.width = 0.5
  with pytest.raises(UserError, match=r'model\.width must be 1\.0'):
    settings.check(c)


def test_a_number_of_images_needs_a_choice_image_by_image():
  c = default.get_config()
  c.budget.images = 5000
  settings.check(c)
  c.selection = 'labelled'
  with pytest.raises(UserError, match=r'budget\.images must be 0 for .*label'):
    settings.check(c)


def test_a_conv_bank_needs_weights():
  c = default.get_config()
  c.describe.bank = 'conv'
  with pytest.raises(UserError, match=r"describe\.weights .*, not ''"):
    settings.check(c)


def test_fine_bins_need_a_place_and_more_of_them():
  c = default.get_config()
  c.describe.fine_bins = c.describe.bins - 1
  with pytest.raises(
    UserError, match=r'fine_bins must be 0 or at least 32.*; search\.cache must'
  ):
    settings.check(c)
  c.describe.fine_bins, c.search.cache = 512, 'cache'
  settings.check(c)
