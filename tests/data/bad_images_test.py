import csv

import pytest

from sjft_jax import errors
from sjft_jax.data import bad_images

BAD = [('pool:b, "2".jpg', 'empty file'), ('pool:a\n1.jpg', 'truncated PNG')]


def test_the_list_reads_back_and_leaves_no_part(tmp_path):
  path = tmp_path / 'bad_images.csv'
  bad_images.record(path, BAD[:1], total=100, max_fraction=0.02)
  bad_images.record(path, BAD, total=100, max_fraction=0.02)
  with open(path, newline='', encoding='utf-8') as file:
    rows = list(csv.reader(file))
  assert rows == [['id', 'reason'], *map(list, sorted(BAD))]
  assert list(tmp_path.iterdir()) == [path]


def test_too_many_stop_the_run_after_the_list_is_written(tmp_path):
  path = tmp_path / 'bad_images.csv'
  with pytest.raises(errors.UserError) as e:
    bad_images.record(path, BAD, total=100, max_fraction=0.019)
  assert '2 of 100' in str(e.value)
  assert str(path) in str(e.value)
  assert 'max_bad_fraction' in str(e.value)
  assert '\n' not in str(e.value)
  assert len(path.read_text().splitlines()) == 4  # One id has a line break.
