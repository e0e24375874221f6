"""What real processes share leaves the bytes that one process leaves."""

import os
import pathlib
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest

from sjft_jax import describe, mesh, search, tables
from sjft_jax.data import datasets
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
  for binning in describe.BINNINGS:
    found = edges(devices, binning)
    np.savez(
      name.with_name(f'{index}-{binning}.npz'),
      edges=found.edges_cb,
      lower=found.lower_c,
      upper=found.upper_c,
    )


def edges(devices, binning):
  """Of a bank that responds with the pixels, on seven images of noise."""
  size = 4
  rng = np.random.default_rng(1)
  files = [
    cv2.imencode('.png', rng.integers(0, 256, (size, size, 3), np.uint8))[1]
    for _ in range(7)
  ]
  read = []
  dataset = datasets.Dataset(
    name='set',
    classes=('any',),
    ids=np.arange(7).astype(str),
    labels=np.zeros(7, np.int32),
    sizes=np.ones(7, np.int64),
    read=lambda i: read.append(i) or files[i].tobytes(),
  )
  bank = describe.Bank(
    responses=lambda image_nhwc: [image_nhwc.astype(np.float32)],
    layer_c=np.zeros(3, np.int32),
    names=('red', 'green', 'blue'),
    resize=size,
    crop=size,
  )
  describer = describe.fit(
    bank, dataset, bins=8, binning=binning, mesh=devices, batch=8, threads=1
  )
  index, count = mesh.share()
  assert set(read) == set(range(index, 7, count))
  return describer


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_leave_the_bytes_of_one(tmp_path, processes):
  work(mesh.make(), tmp_path / 'one', (0, 1))
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
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert not any(process.returncode for process in running), errors
  finally:
    for process in running:
      process.kill()
  for kind in (
    '.parquet',
    *(f'-{binning}.npz' for binning in describe.BINNINGS),
  ):
    expected = (tmp_path / 'one' / f'0{kind}').read_bytes()
    for i in range(processes):
      assert (directory / f'{i}{kind}').read_bytes() == expected
  assert not (directory / 'shards').exists()
