import hashlib
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from sjft_jax import command, convert
from sjft_jax.models import conv_bank, weight_files
from sjft_jax.models.convention import CAFFE, CAFFE_MEAN_IMAGE, TORCHVISION
from tests.parity import weights
from tests.parity.caffe_bytes import blob, layer, part

PARITY = pathlib.Path(__file__).parent / 'parity'


def run(kind, path, out):
  return command.guarded(
    convert._work, ['', f'--from={kind}', str(path), f'--to={out}']
  )


@pytest.fixture
def torch_alexnet(tmp_path):
  fixture = np.load(PARITY / 'alexnet_torchvision.npz')
  path = tmp_path / 'alexnet.pth'
  save_file(weights.fixture_state(fixture), path)
  return path


def caffe_alexnet(path, name='AlexNet'):
  """BVLC's AlexNet in ones, as old layers with four axes."""
  data = part(1, name.encode())
  for conv, shape in {
    'conv1': (96, 3, 11, 11),
    'conv2': (256, 48, 5, 5),
    'conv3': (384, 256, 3, 3),
    'conv4': (384, 192, 3, 3),
    'conv5': (256, 192, 3, 3),
  }.items():
    kernel, bias = np.ones(shape), np.ones(shape[0])
    data += layer(conv, blob(kernel, old=True), blob(bias, old=True), old=True)
  fc6 = np.ones((5, 7))
  data += layer('fc6', blob(fc6, old=True), old=True)
  path.write_bytes(data)
  return path


def squeezenet(path):
  found = {}
  for name, (kernel, bias) in (
    conv_bank.NETWORKS['squeezenet_v1_0'].shapes().items()
  ):
    for ours, theirs in (
      ('_squeeze', '/conv1x1_1'),
      ('_expand1', '/conv1x1_2'),
      ('_expand3', '/conv3x3_2'),
    ):
      name = name.replace(ours, theirs)
    h, w, i, o = kernel
    found[f'{name}/W'] = np.ones((o, i, h, w), np.float32)
    found[f'{name}/b'] = np.ones(bias, np.float32)
  found['conv_final/W'] = np.ones((1000, 512, 1, 1), np.float32)
  found['conv_final/b'] = np.ones(1000, np.float32)
  np.savez(path, **found)
  return path


@pytest.mark.parametrize(
  ('kind', 'network', 'convention'),
  [
    ('torch', 'alexnet_torchvision', TORCHVISION),
    ('caffe', 'alexnet_caffe', CAFFE_MEAN_IMAGE),
    ('npz', 'squeezenet_v1_0', CAFFE),
  ],
)
def test_a_bank_obeys_what_a_conversion_recorded(
  tmp_path, capsys, torch_alexnet, kind, network, convention
):
  path = {
    'torch': torch_alexnet,
    'caffe': caffe_alexnet(tmp_path / 'x.caffemodel'),
    'npz': squeezenet(tmp_path / 'x.npz'),
  }[kind]
  out = tmp_path / 'out' / 'weights.safetensors'
  assert run(kind, path, out) == 0
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  printed = capsys.readouterr().out
  assert network in printed
  assert str(convention) in printed
  assert digest in printed
  found = weight_files.read(out)
  assert found.network == network
  assert found.origin == {'source': path.name, 'source_sha256': digest}
  assert conv_bank.load(str(out))[-1] == convention


def test_the_network_that_only_looks_like_alexnet_is_refused(tmp_path, capsys):
  path = caffe_alexnet(tmp_path / 'x.caffemodel', 'CaffeNet')
  assert run('caffe', path, tmp_path / 'out.safetensors') == 2
  assert 'pools before it normalises' in capsys.readouterr().err


def test_what_does_not_fit_is_one_line_and_nothing_written(
  tmp_path, capsys, torch_alexnet
):
  out = tmp_path / 'out.safetensors'

  def refused(kind, path, match):
    assert run(kind, path, out) == 2
    line = capsys.readouterr().err
    assert match in line
    assert line.count('\n') == 1
    assert not out.exists()

  refused('caffe', torch_alexnet, 'no .caffemodel file')
  refused('npz', torch_alexnet, 'no .npz file')
  refused('torch', PARITY / 'new.pth', 'of no network known here')
  refused('torch', PARITY / 'absent.pth', 'No such file')
  save_file({'features.0.weight': np.zeros(3)}, torch_alexnet)
  refused('torch', torch_alexnet, 'features.0.bias is missing')
  assert run('torch', torch_alexnet, tmp_path / 'out.npz') == 2
  assert 'end in .safetensors' in capsys.readouterr().err
