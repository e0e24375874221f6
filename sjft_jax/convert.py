"""Makes weights of other programs usable here.

python -m sjft_jax.convert --from=KIND FILE --to=OUT.safetensors

KIND  what FILE is
torch  torchvision's AlexNet or ResNet-50/101/152, timm's of the same names:
       .pth or .safetensors
caffe  BVLC's AlexNet, the ResNet-152 of the method's release: .caffemodel
bit    BiT's R50, R101 and R152 of any width, as published: .npz
npz    SqueezeNet v1.0: .npz with <layer>/W and <layer>/b

OUT is a file for model.weights (all of them) and for describe.weights (AlexNet,
SqueezeNet). It says where the weights came from, and which input they were
trained on: range, means and order of the channels are obeyed wherever they are
used, the size is the default of describe.resize and describe.crop.
"""

import dataclasses
import sys

from sjft_jax import command, files, paths, translate
from sjft_jax.errors import UserError
from sjft_jax.formats import caffe_file, npz_file, torch_file
from sjft_jax.models import weight_files


def _read_caffe(path):
  name, tensors = caffe_file.read(path)
  if name == 'CaffeNet':
    raise UserError(
      f'{path} is of CaffeNet, which has the kernels of AlexNet but pools '
      'before it normalises; only AlexNet is known here.'
    )
  return tensors


# Kind -> (reader, [(a tensor that tells the network, its translation)]).
SOURCES = {
  'torch': (
    torch_file.read,
    [
      ('features.0.weight', translate.alexnet_torchvision),
      ('layer1.0.conv3.weight', translate.resnet_torch),
    ],
  ),
  'caffe': (
    _read_caffe,
    [
      ('res2a_branch2a/0', translate.resnet_caffe),
      ('conv1/0', translate.alexnet_caffe),
    ],
  ),
  'bit': (
    npz_file.read,
    [('resnet/root_block/standardized_conv2d/kernel', translate.bit_npz)],
  ),
  'npz': (
    npz_file.read,
    [('fire2/conv1x1_1/W', translate.squeezenet_npz)],
  ),
}


def convert(kind: str, path: str) -> weight_files.Weights:
  """Weights of another program, recognised by their tensors.

  Args:
    kind: row of SOURCES.
    path: the file.

  Returns:
    The weights, with the file's name and sha256 as their origin.

  Raises:
    UserError: if the file is not of that kind, or of no network known here.
  """
  reader, networks = SOURCES[kind]
  with files.on_disk(path) as found:
    tensors = reader(found)
  translations = [made for name, made in networks if name in tensors]
  if not translations:
    raise UserError(
      f'{path} is of no network known here: it has none of '
      f'{", ".join(name for name, _ in networks)}.'
    )
  try:
    weights = translations[0](tensors)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  origin = {
    'source': paths.path(path).name,
    'source_sha256': files.digest(path),
  }
  return dataclasses.replace(weights, origin=origin)


def _work(argv):
  parser = command.parser('convert', __doc__)
  parser.add_argument('--from', required=True, dest='kind', choices=SOURCES)
  parser.add_argument('--to', required=True, help='the .safetensors file')
  parser.add_argument('file', metavar='FILE')
  args = parser.parse_args(argv[1:])
  if not args.to.endswith('.safetensors'):
    raise UserError(f'--to must end in .safetensors, not be {args.to}.')
  weights = convert(args.kind, args.file)
  weight_files.write(args.to, weights)
  print(
    f'{args.to}: {len(weights.tensors)} tensors of {weights.network}\n'
    f'input: {weights.convention}\n'
    f'source: {weights.origin["source"]}, '
    f'sha256 {weights.origin["source_sha256"]}'
  )


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
