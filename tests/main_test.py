import os
import pathlib
import subprocess
import sys

import pytest

from sjft_jax import main
from sjft_jax.errors import UserError


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
