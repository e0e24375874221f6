import csv

import pytest

from benchmarks import bad_images as stress
from sjft_jax import errors
from sjft_jax.data import bad_images, datasets, pipelines

BAD = [('pool:b, "2".jpg', 'empty file'), ('pool:a\n1.jpg', 'truncated PNG')]


def test_the_list_reads_back_and_leaves_no_part(tmp_path):
  path = tmp_path / 'bad_images.csv'
  bad_images.record(path, BAD[:1], total=100, max_fraction=0.02)
  bad_images.record(path, BAD, total=100, max_fraction=0.02)
  with open(path, newline='', encoding='utf-8') as file:
    rows = list(csv.reader(file))
  assert rows == [['id', 'reason'], *map(list, sorted(BAD))]
  assert bad_images.read(path) == dict(BAD)
  assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_was_bad_there_is_no_list_and_nothing_to_read(tmp_path):
  path = tmp_path / 'bad_images.csv'
  bad_images.record(path, [], total=100, max_fraction=0.02)
  assert bad_images.read(path) == {}
  assert not path.exists()


def test_too_many_stop_the_run_after_the_list_is_written(tmp_path):
  path = tmp_path / 'bad_images.csv'
  with pytest.raises(errors.UserError) as e:
    bad_images.record(path, BAD, total=100, max_fraction=0.019)
  assert '2 of 100' in str(e.value)
  assert str(path) in str(e.value)
  assert 'max_bad_fraction' in str(e.value)
  assert '\n' not in str(e.value)
  assert len(path.read_text().splitlines()) == 4  # One id has a line break.


def test_every_bad_image_is_listed_and_every_other_one_kept(tmp_path):
  written = stress.write(tmp_path, good_count=20, troublesome=42)
  pool = datasets.open_pool({'main': {'dir': str(tmp_path)}})
  reasons = dict(pipelines.find_bad(pool, threads=2))
  found = {
    str(pool.ids[i]).removeprefix('main:')
    for i, reason in reasons.items()
    if reason
  }
  assert found == {path for path, kind in written.items() if kind in stress.BAD}
  assert len(found) == 21
  assert len(reasons) == len(written) == 62
