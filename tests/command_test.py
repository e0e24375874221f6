import os
import subprocess
import sys

import pytest


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
