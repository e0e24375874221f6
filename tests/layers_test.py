"""Imports point down only, and nothing heavy is imported at run time."""

import ast
import pathlib
import subprocess
import sys

from sjft_jax import prepare

PACKAGE = pathlib.Path(__file__).parent.parent / 'sjft_jax'

BUILDERS = [
  f'data.builders.{name}.{name}_dataset_builder' for name in prepare.NAMES
]

# From the bottom up. A module may import from the groups above its own line
# here, and within its group from those before it.
LAYERS = [
  ['errors', 'machine', 'paths', 'files', 'preemption', 'progress', 'command'],
  ['ops.cosine', 'ops.divergence', 'ops.gabor', 'ops.hardness'],
  ['ops.groups', 'ops.histograms'],
  ['ops.losses', 'ops.quantiles', 'ops.release_edges'],
  ['ops.screen', 'ops.topk'],
  ['ops.likeness'],
  ['processes', 'mesh', 'workdirs', 'optim', 'packed', 'checkpoints'],
  ['metrics'],
  ['data.preprocess', 'data.packaged', 'data.packs', 'data.dataset'],
  ['data.image_files', 'data.csv_lists', 'data.folders', 'data.tfds_sets'],
  ['data.datasets'],
  ['data.pipelines', 'data.recorded'],
  ['data.bad_images', 'data.fingerprints', 'data.hashes'],
  ['models.convention', 'models.convolutions'],
  ['models.frozen', 'models.weight_files'],
  ['models.alexnet', 'models.squeezenet', 'models.conv_bank'],
  ['models.resnet', 'models.bit', 'models.trunks'],
  ['models.two_heads', 'models.pretrained'],
  ['formats.caffe_file', 'formats.npz_file', 'formats.torch_file'],
  ['translate'],
  ['intake', 'describe', 'streams', 'reuse', 'screen', 'exact'],
  ['tables', 'search', 'certificate'],
  ['evaluate', 'train', 'features'],
  ['answers', 'recipes'],
  ['repeats', 'guard'],
  ['retrieval', 'selection', 'learn', 'suspects', 'reasons', 'round_files'],
  ['settings'],
  ['report.wording', 'report.record', 'report.plots', 'report.lending'],
  ['report.galleries', 'report.mistakes', 'report.near', 'report.run'],
  ['report.comparison', 'report.summary'],
  ['report.pages'],
  ['preflight', 'outcome', 'rounds', 'trained'],
  ['intervals', 'tuning', 'arms'],
  ['experiment'],
  ['main'],
  ['selected', 'export_formats'],
  ['sweep', 'convert', 'predict', 'export', 'verify', 'explain'],
  ['data.builders.archives', *BUILDERS],
  ['prepare'],
]
ORDER = [name for layer in LAYERS for name in layer]


def modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    if path.name != '__init__.py':
      name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
      yield name, path


def imported(path):
  """Modules of the package that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] == 'sjft_jax':
        for alias in node.names:
          name = '.'.join([*parts[1:], alias.name])
          yield name if name in ORDER else '.'.join(parts[1:])
    if isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith('sjft_jax.'):
          yield alias.name.removeprefix('sjft_jax.')


def test_every_module_has_its_place():
  assert sorted(ORDER) == [name for name, _ in modules()]


def test_imports_point_down():
  upward = [
    f'{name} imports {other}'
    for name, path in modules()
    for other in imported(path)
    if ORDER.index(other) >= ORDER.index(name)
  ]
  assert not upward


def test_kernels_import_nothing_above_them():
  for path in (PACKAGE / 'ops').glob('*.py'):
    assert all(name.startswith('ops') for name in imported(path)), path


def test_neither_tensorflow_nor_torch_is_imported():
  code = (
    'import sys; import sjft_jax.main, sjft_jax.sweep, sjft_jax.predict, '
    'sjft_jax.verify, sjft_jax.explain, sjft_jax.convert, sjft_jax.export, '
    'sjft_jax.prepare as p; [p.builder_class(n) for n in p.NAMES]; '
    'print(sorted({"tensorflow", "torch", "keras"} & set(sys.modules)))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'


def test_only_the_run_and_the_sweep_take_the_flags_of_a_run():
  taking = [n for n, path in modules() if 'main' in imported(path)]
  assert taking == ['sweep']
