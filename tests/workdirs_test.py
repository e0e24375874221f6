import json
import pathlib

import pytest

from sjft_jax import workdirs
from sjft_jax.errors import UserError

SETTINGS = {'seed': 0, 'threads': 2, 'optim': {'boundaries': (1, 2)}}


def test_the_same_settings_are_resumed_and_nothing_is_rewritten(tmp_path):
  workdirs.claim(tmp_path / 'run', SETTINGS)
  before = (tmp_path / 'run' / 'config.json').stat().st_mtime_ns
  workdirs.claim(tmp_path / 'run', SETTINGS | {'threads': 8})
  assert (tmp_path / 'run' / 'config.json').stat().st_mtime_ns == before
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['settings']['optim'] == {'boundaries': [1, 2]}
  assert 'jax' in stored['versions']


def test_a_changed_setting_is_refused_with_the_difference(tmp_path):
  workdirs.claim(tmp_path, SETTINGS)
  (tmp_path / 'selection').mkdir()
  (tmp_path / 'selection' / 'edges.npz').write_text('')
  with pytest.raises(
    UserError, match=r'optim\.boundaries was \[1, 2\], now \[1, 3\]'
  ):
    workdirs.claim(tmp_path, SETTINGS | {'optim': {'boundaries': (1, 3)}})


def test_a_setting_that_came_or_went_is_a_difference(tmp_path):
  workdirs.claim(tmp_path, SETTINGS)
  (tmp_path / 'metrics.jsonl').write_text('')
  with pytest.raises(UserError, match=r'source\.places was None, now'):
    workdirs.claim(tmp_path, SETTINGS | {'source': {'places': 'x'}})


def test_a_start_that_made_nothing_does_not_bind_the_next(tmp_path):
  for directory in (tmp_path, tmp_path / 'runs' / 'arm-0'):
    workdirs.claim(directory, SETTINGS)
    (directory / 'bad_images.csv').write_text('id,reason\n')
    (directory / 'data.json').write_text('{}')
    (directory / 'guard' / 'pairs').mkdir(parents=True)
    (directory / 'guard' / 'pairs' / '000000.jpg').write_text('')
  other = SETTINGS | {'seed': 1}
  workdirs.claim(tmp_path, other)
  assert [p.name for p in tmp_path.rglob('*.*')] == ['config.json']
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['settings']['seed'] == 1
  workdirs.claim(tmp_path / 'runs' / 'arm-0', other)


def test_two_starts_do_not_work_in_one_directory(tmp_path):
  run = tmp_path / 'run'
  with workdirs.held(run):
    workdirs.claim(run, SETTINGS)
    with (
      pytest.raises(UserError, match='run is in use: another process'),
      workdirs.held(run),
    ):
      pytest.fail('The second start got in.')
    with workdirs.held(tmp_path / 'other'):
      pass
  # Nothing is left of it but the run.
  assert [p.name for p in run.iterdir()] == ['config.json']
  with workdirs.held(run):
    workdirs.claim(run, SETTINGS)


def test_an_arm_that_is_but_a_title_does_not_come_or_go(tmp_path):
  arms = {'a': {'title': 'A'}, 'b': {'title': 'B', 'set': {'seed': 1}}}
  workdirs.claim(tmp_path, SETTINGS | {'arms': arms})
  (tmp_path / 'metrics.jsonl').write_text('')
  other = arms | {'a': {'title': 'Mended', 'published': 9.5}}
  assert workdirs.claim(tmp_path, SETTINGS | {'arms': other})
  workdirs.show_anew(tmp_path, SETTINGS | {'arms': other})
  assert not workdirs.claim(tmp_path, SETTINGS | {'arms': other})
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['settings']['arms'] == other
  for wrong in (arms | {'c': {'title': 'C'}}, {'b': arms['b']}):
    with pytest.raises(UserError, match=r'arms\.[ac]\.title was'):
      workdirs.claim(tmp_path, SETTINGS | {'arms': wrong})


def test_what_only_stops_a_run_may_change_under_it(tmp_path):
  workdirs.claim(tmp_path, SETTINGS | {'max_bad_fraction': 0.1})
  (tmp_path / 'metrics.jsonl').write_text('')
  workdirs.claim(tmp_path, SETTINGS | {'max_bad_fraction': 0.2})
  assert (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.parametrize('text', ['{"name": "x"}', '[]', 'settings = 1'])
def test_another_programs_config_is_refused_and_left_alone(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'not the config\.json of a run'):
    workdirs.claim(tmp_path, SETTINGS)
  assert (tmp_path / 'config.json').read_text() == text


def test_settings_come_back(tmp_path):
  workdirs.claim(tmp_path, SETTINGS)
  c = workdirs.settings_of(tmp_path)
  assert (c.seed, c.optim.boundaries) == (0, [1, 2])


@pytest.mark.parametrize('text', ['{"name": "x"}', '{"settings": null}', None])
def test_settings_of_something_else_are_refused(tmp_path, text):
  if text:
    (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'not the config\.json of a run'):
    workdirs.settings_of(tmp_path)


def test_files_of_somebody_else_are_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('mine')
  with pytest.raises(UserError, match=r'no config\.json'):
    workdirs.claim(tmp_path, SETTINGS)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
  with pytest.raises(UserError, match='is a file'):
    workdirs.claim(tmp_path / 'thesis.tex', SETTINGS)


def test_seconds_add_up_over_restarts_and_interruptions(tmp_path):
  for _ in range(2):
    clock = workdirs.Clock(tmp_path)
    with pytest.raises(KeyboardInterrupt), clock('search'):
      raise KeyboardInterrupt
  with workdirs.Clock(tmp_path)('train'):
    pass
  stored = json.loads((tmp_path / 'seconds.json').read_text())
  assert list(stored) == ['search', 'train']


@pytest.mark.parametrize('at', range(1, 4))
def test_a_start_killed_while_it_begins_anew_does_not_bind_the_next(
  tmp_path, monkeypatch, at
):
  workdirs.claim(tmp_path, SETTINGS)
  (tmp_path / 'guard').mkdir()
  for name in ('data.json', 'seconds.json', 'guard/record.json'):
    (tmp_path / name).write_text('{}')
  unlink, left = pathlib.Path.unlink, list(range(at))

  def killed(path):
    if not left:
      raise KeyboardInterrupt
    left.pop()
    unlink(path)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'unlink', killed)
    patch.setattr(workdirs.files, 'write_json', lambda *_: killed(tmp_path))
    with pytest.raises(KeyboardInterrupt):
      workdirs.claim(tmp_path, SETTINGS | {'seed': 1})
  workdirs.claim(tmp_path, SETTINGS | {'seed': 2})
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']
