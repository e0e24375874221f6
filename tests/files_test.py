import pytest

from sjft_jax import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'value.json'
  files.write_json(path, {'é': [1]})

  def fail():
    with files.replacing(path) as file:
      file.write(b'half')
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  assert files.read_json(path) == {'é': [1]}
  assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
  path = tmp_path / 'new' / 'table.csv'
  with files.replacing(path, 'w') as file:
    file.write('a\n')
    assert not path.exists()
  assert path.read_text() == 'a\n'
