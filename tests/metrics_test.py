import json

from sjft_jax import metrics, paths


def lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def keys(workdir):
  return [(line['round'], line['step']) for line in lines(workdir)]


def write(workdir, m, steps, first=0):
  with metrics.Writer(workdir, f'stage_{m}', m, first) as writer:
    for step in steps:
      writer(step, {'loss': step / 3})


def test_one_object_a_line(tmp_path):
  write(tmp_path, 0, [1, 2])
  assert lines(tmp_path) == [
    {'round': 0, 'step': 1, 'loss': 0.333333},
    {'round': 0, 'step': 2, 'loss': 0.666667},
  ]


def test_rounds_follow_each_other(tmp_path):
  for m in (-1, 0, 1):
    write(tmp_path, m, [1, 2])
  assert keys(tmp_path) == [(-1, 1), (-1, 2), (0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_resumed_run_writes_no_line_twice(tmp_path):
  write(tmp_path, 0, [1, 2])
  write(tmp_path, 1, [1, 2, 3, 4, 5])
  write(tmp_path, 1, [3, 4], first=2)
  assert keys(tmp_path) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_line_cut_by_a_kill_is_removed(tmp_path):
  write(tmp_path, 0, [1, 2])
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-9])
  write(tmp_path, 0, [2, 3], first=1)
  assert keys(tmp_path) == [(0, 1), (0, 2), (0, 3)]


def test_lines_are_there_while_the_round_goes_on(tmp_path):
  with metrics.Writer(tmp_path, 'stage_0', 0) as writer:
    writer(1, {'loss': 1.0})
    assert keys(tmp_path) == [(0, 1)]


def test_every_stage_is_a_run_in_tensorboard(tmp_path):
  for m in (0, 1):
    write(tmp_path, m, [1])
  board = tmp_path / 'tensorboard'
  assert {p.name for p in board.iterdir()} == {'stage_0', 'stage_1'}
  for run in board.iterdir():
    (events,) = run.iterdir()
    assert b'loss' in events.read_bytes()


def test_in_a_store_a_kill_takes_no_line_from_before_a_checkpoint(bucket):
  run = paths.path('gs://b/run')
  write(run, 0, [1, 2])
  killed = metrics.Writer(run, 'stage_1', 1)
  killed(1, {'loss': 1.0})
  killed.sync()
  killed(2, {'loss': 1.0})
  assert keys(run) == [(0, 1), (0, 2), (1, 1)]
  write(run, 1, [2, 3], first=1)
  assert keys(run) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
  names = [name for name, _ in paths.below(run / 'tensorboard')]
  assert {name.partition('/')[0] for name in names} == {'stage_0', 'stage_1'}
  killed.close()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.processes, 'first', lambda: False)
  write(tmp_path, 0, [1])
  assert not list(tmp_path.iterdir())
