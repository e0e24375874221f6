"""Whether converted SqueezeNet weights classify pictures of ImageNet.

  python -m sjft_jax.convert --from=npz FILE.npz --to=squeezenet.safetensors
  python -m benchmarks.squeezenet_imagenet --weights=squeezenet.safetensors \
      --images=DIR [--words=FILE.tsv] [--side=128]

DIR holds one folder of images per class, named by its WordNet id (n01443537);
--words names them, an id and a tab before each. The images pass the filter
bank up to fire9, resized and cropped as the weights want it or resized to
--side, then the classifier that came with the weights: a 1 x 1 convolution
with padding 1, a ReLU and a mean. Prints the accuracy over all 1,000 classes
beside chance, the same with red and blue exchanged, which must be worse if the
input is as the weights want it, and a few answers. Small images that are
enlarged much are blurred as none was in training: 128 suits 64 pixels better
than 256. The weights may have been trained on these very images.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from sjft_jax.data import preprocess
from sjft_jax.models import conv_bank, weight_files
from sjft_jax.models.frozen import Conv

_BATCH = 50


def main():
  """Classifies and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--weights', required=True)
  parser.add_argument('--images', required=True, type=pathlib.Path)
  parser.add_argument('--words', type=pathlib.Path)
  parser.add_argument('--side', type=int, default=0, help='pixels')
  args = parser.parse_args()
  # In the order of the classifier's outputs.
  names = tfds.builder('imagenet2012').info.features['label'].names
  words = dict(enumerate(names))
  if args.words:
    lines = args.words.read_text(encoding='utf-8').splitlines()
    named = dict(line.split('\t', 1) for line in lines)
    words = {i: named.get(name, name) for i, name in words.items()}
  paths = sorted(args.images.glob('*/*'))
  label_n = np.array([names.index(path.parent.name) for path in paths])
  classify, convention = make_classify(args.weights)
  resize, crop = args.side or convention.resize, args.side or convention.crop
  score_nc, exchanged_nc = [], []
  for start in range(0, len(paths), _BATCH):
    image_nhwc = np.stack(
      [
        preprocess.center_crop(
          preprocess.resize(preprocess.decode(path.read_bytes()), resize), crop
        )
        for path in paths[start : start + _BATCH]
      ]
    )
    score_nc.append(classify(image_nhwc))
    exchanged_nc.append(classify(image_nhwc[..., ::-1]))
  score_nc, exchanged_nc = map(np.concatenate, (score_nc, exchanged_nc))
  classes = score_nc.shape[1]
  print(
    f'{len(paths)} images of {len(set(label_n))} of {classes} classes, '
    f'resized to {resize}, cropped to {crop} pixels'
  )
  for k in (1, 5):
    print(
      f'top-{k}: {accuracy(score_nc, label_n, k):.1f} % '
      f'(chance {100 * k / classes:.1f} %, red and blue exchanged '
      f'{accuracy(exchanged_nc, label_n, k):.1f} %)'
    )
  for i in np.linspace(0, len(paths) - 1, 8).astype(int):
    best = np.argsort(-score_nc[i], kind='stable')[:3]
    answers = '; '.join(words[b] for b in best)
    print(f'{words[label_n[i]]!r} is taken for: {answers}')


def accuracy(score_nc, label_n, k):
  """Images whose class is among the best k, per cent.

  Ties count against it: who answers everything alike is right nowhere.
  """
  own_n = np.take_along_axis(score_nc, label_n[:, None], axis=1)
  return 100 * ((score_nc >= own_n).sum(axis=1) <= k).mean()


def make_classify(path):
  """(uint8 images -> scores [n, 1000], the input that the weights want)."""
  responses, _, convention = conv_bank.load(path, ('fire9',))
  tensors = weight_files.read(path).tensors
  head = Conv('head', 1000, 1, padding=1)
  arrays = {
    'head': tuple(
      jnp.asarray(tensors[f'{weight_files.HEAD}{part}'])
      for part in ('kernel', 'bias')
    )
  }

  @jax.jit
  def scores(image_nhwc):
    (fire9_nhwc,) = responses(image_nhwc)
    return jax.nn.relu(head(fire9_nhwc, arrays)).mean(axis=(1, 2))

  return lambda image_nhwc: np.asarray(scores(image_nhwc)), convention


if __name__ == '__main__':
  main()
