"""A search shared by real processes leaves the bytes that one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from sjft_jax import mesh, search, tables
from tests.described import Describer, Stream, counts

ROOT = pathlib.Path(__file__).parent.parent
# More shards than processes, the last one short.
SETTINGS = dict(k=12, rows=32, shard_images=40)
WORK = """
import sys
import jax
from sjft_jax import mesh
from tests import processes_test

jax.distributed.initialize(
  sys.argv[1], int(sys.argv[2]), int(sys.argv[3]),
  shutdown_timeout_seconds=60,
)
processes_test.work(mesh.own(mesh.make()), sys.argv[4], mesh.share())
"""


def work(devices, directory, share):
  rng, describer = np.random.default_rng(0), Describer(8, 60, 3)
  target, source = counts(rng, 9), counts(rng, 390)
  source[200:220] = source[10:30]
  stream = Stream(describer, source)
  shards = pathlib.Path(directory) / 'shards'
  found = search.nearest(
    Stream(describer, target),
    stream,
    mesh=devices,
    directory=shards,
    share=share,
    **SETTINGS,
  )
  index, count = share
  # Nobody read more than its shards.
  assert stream.read <= 40 * -(-10 // count)
  ids = np.arange(390).astype(str)
  name = pathlib.Path(directory) / f'{index}.parquet'
  tables.write(name, found.table, ids[:9], ids)
  search.clear(shards, share)


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_leave_the_bytes_of_one(tmp_path, processes):
  work(mesh.make(), tmp_path / 'one', (0, 1))
  expected = (tmp_path / 'one' / '0.parquet').read_bytes()
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  directory = tmp_path / 'many'
  running = [
    subprocess.Popen(
      [sys.executable, '-c', WORK, address, f'{processes}', f'{i}', directory],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  try:
    for process in running:
      _, errors = process.communicate(timeout=240)
      assert process.returncode == 0, errors
  finally:
    for process in running:
      process.kill()
  for i in range(processes):
    assert (directory / f'{i}.parquet').read_bytes() == expected
  assert not (directory / 'shards').exists()
