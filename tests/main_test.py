import os
import pathlib
import subprocess
import sys

import pytest

from sjft_jax import main
from sjft_jax.errors import UserError


def guarded(code, **streams):
  code = (
    f'import sys; from sjft_jax import main; sys.exit(main.guarded({code}))'
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


@pytest.mark.parametrize(
  ('given', 'environment', 'said'),
  [
    (['--processes=2'], {}, '--processes is for --multihost; give that, too.'),
    (['--config.processes.heartbeat=0'], {}, 'heartbeat must be at least 1 s'),
    (
      ['--config=configs/none.py', '--config.rounds=1'],
      {},
      '--config must name a Python file',
    ),
    (
      ['--config=configs/demo.py:best', '--config.rounds=1'],
      {},
      "sjft_jax: Needed one of fine_tuning, random, selective; came 'best'. ",
    ),
    (
      ['--multihost', '--coordinator=host'],
      {},
      "The coordinator must be HOST:PORT, not 'host'.",
    ),
    (
      ['--multihost'],
      {'JAX_COORDINATOR_ADDRESS': 'host:1', 'JAX_NUM_PROCESSES': 'two'},
      "JAX_NUM_PROCESSES must be a number, not 'two'.",
    ),
  ],
)
def test_a_wrong_command_line_is_one_line(given, environment, said, tmp_path):
  code = 'import sys; from sjft_jax import main; sys.exit(main.run(sys.argv))'
  config = '--config=configs/folders.py', f'--workdir={tmp_path}/run'
  done = subprocess.run(
    [sys.executable, '-c', code, *config, *given],
    stderr=subprocess.PIPE,
    text=True,
    check=False,
    cwd=pathlib.Path(__file__).parent.parent,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
  )
  assert done.returncode == 2, done.stderr
  assert said in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr


def test_a_command_line_that_is_no_utf_8_is_one_line():
  name = os.fsdecode(b'--workdir=caf\xe9')
  with pytest.raises(UserError, match=r"must be UTF-8; '.*caf\\udce9' is not"):
    main.parse(['main', '--config=configs/folders.py', name])
