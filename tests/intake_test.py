"""A run begins with the same readable images, whatever happens to a disk."""

import errno

import pytest

from configs import folders
from sjft_jax import intake
from sjft_jax.errors import UserError
from tests import digits


@pytest.fixture
def case(tmp_path):
  """(settings, directory of the images, directory of the run)."""
  root = digits.write(
    tmp_path / 'data', train=(0, 12), test=(12, 30), source=(1, 2)
  )
  c = folders.get_config()
  c.target.train, c.target.test = str(root / 'train'), str(root / 'test')
  c.selection, c.pretrain.steps, c.max_bad_fraction = 'none', 0, 1.0
  return c, root, tmp_path / 'run'


def test_an_image_that_cannot_be_read_now_is_refused(case, monkeypatch):
  c, _, workdir = case

  def stale(name, *args):
    if str(name).endswith('010.png'):
      raise OSError(errno.ESTALE, 'Stale file handle')
    return open(name, *args)

  monkeypatch.setattr('sjft_jax.paths.open', stale, raising=False)
  with pytest.raises(UserError, match=r'010\.png.* cannot be read now.*Stale'):
    intake.load(c, workdir)
  monkeypatch.undo()
  train, _, _ = intake.load(c, workdir)
  assert 'target:train/digit 0/010.png' in train.ids
  assert not (workdir / 'bad_images.csv').exists()


@pytest.mark.parametrize(
  ('broken', 'what'),
  [('train/digit 3', 'training image of digit 3'), ('test', 'test image')],
)
def test_a_part_that_has_no_readable_image_is_refused(case, broken, what):
  c, root, workdir = case
  for path in (root / broken).rglob('*.png'):
    path.write_bytes(b'no image')
  with pytest.raises(UserError, match=f'needs a readable {what}'):
    intake.load(c, workdir)


def test_bad_images_of_an_earlier_start_are_forgotten(case):
  c, _, workdir = case
  workdir.mkdir()
  (workdir / 'bad_images.csv').write_text('id,reason\nx.png,was away\n')
  intake.load(c, workdir)
  assert not (workdir / 'bad_images.csv').exists()
