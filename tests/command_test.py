import errno
import os
import subprocess
import sys

import pytest

from sjft_jax import command, files, main


def guarded(code, **streams):
  code = (
    'import sys; from sjft_jax import command; '
    f'sys.exit(command.guarded({code}))'
  )
  return subprocess.run(
    [sys.executable, '-c', code],
    stderr=subprocess.PIPE,
    text=True,
    check=False,
    **streams,
  )


def test_a_reader_that_has_enough_is_no_fault():
  for lines in (1, 100_000):
    reader, writer = os.pipe()
    os.close(reader)
    done = guarded(f'lambda: print("line\\n" * {lines})', stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='of Linux')
def test_a_full_disk_is_one_line():
  with open('/dev/full', 'w') as full:
    done = guarded('lambda: print("line")', stdout=full)
  assert done.returncode == 2
  assert 'free some space' in done.stderr.splitlines()[0]


def test_a_fault_of_the_program_is_not_hidden():
  done = guarded('lambda: 1 / 0')
  assert done.returncode == 1
  assert 'ZeroDivisionError' in done.stderr


def test_control_c_says_what_the_same_command_will_do(capsys, monkeypatch):
  def work(*args):
    raise KeyboardInterrupt

  assert command.guarded(work) == 130
  said = capsys.readouterr().err.strip()
  assert said == 'Interrupted; give the same command again.'
  monkeypatch.setattr(main, '_work', work)
  monkeypatch.setattr(main.preemption, 'listen', lambda: None)
  monkeypatch.setattr(main.preemption, 'claim', lambda: None)
  assert main.run(['main']) == 130
  said = capsys.readouterr().err.strip()
  assert said == 'Interrupted; the same command goes on from here.'


def written(path):
  files.write_json(path, 1)


def built(path):
  with files.building(path, 'x') as beside:
    beside.mkdir()


@pytest.mark.parametrize('work', [written, built])
@pytest.mark.parametrize(
  ('name', 'number'),
  [
    ('file/x', errno.ENOTDIR),
    ('file/x/y', errno.ENOTDIR),
    # A name of its own is as long as it may be; beside it there is none.
    ('n' * 252, errno.ENAMETOOLONG),
    ('n' * 300, errno.ENAMETOOLONG),
  ],
)
def test_a_place_that_cannot_be_is_one_line(
  tmp_path, capsys, work, name, number
):
  (tmp_path / 'file').write_text('')
  assert command.guarded(work, tmp_path / name) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{os.strerror(number)}: ' in line
  assert str(tmp_path) in line
  assert [path.name for path in tmp_path.iterdir()] == ['file']
