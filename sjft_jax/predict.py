"""Classes of new images: python -m sjft_jax.predict --workdir=DIR IMAGE...

Prints path, class and probability of every image, or with --json one object
a line. Directories are searched for images.
"""

import json
import pathlib
import sys

import numpy as np

from sjft_jax import command, mesh, paths, progress, trained
from sjft_jax.data import image_files, preprocess
from sjft_jax.errors import UserError


def images(texts) -> list:
  """The image files that the texts name; directories are searched.

  Hidden names are left out there, as where a run opens its folders.

  Raises:
    UserError: if a path does not exist, or there is no image at all.
  """
  found = []
  for path in map(paths.path, texts):
    if path.is_dir() and not paths.in_store(path):
      found += map(pathlib.Path, sorted(image_files.image_files(str(path))))
    elif path.is_dir():
      found += sorted(
        path / name
        for name, _ in paths.below(path)
        if pathlib.PurePath(name).suffix.lower() in image_files.SUFFIXES
        and not any(part.startswith('.') for part in name.split('/'))
      )
    elif path.is_file():
      found.append(path)
    else:
      raise UserError(f'Needed an image or a directory; there is no {path}.')
  if not found:
    raise UserError(f'No image lies in {", ".join(texts)}.')
  return found


def predict(workdir, images, *, fuse, batch):
  """Classifies image files by a finished run.

  Args:
    workdir: directory of the run.
    images: paths of image files.
    fuse: average the class probabilities of all rounds; otherwise those of one
      network, the distilled one or the last round's.
    batch: images at a time.

  Yields:
    (path, probability float32 [classes] or None, reason or None) in order; a
    file that cannot be decoded has a reason and no probability.
  """
  run = trained.Trained(workdir, mesh.make())
  crop = run.settings.train.crop
  for start in range(0, len(images), batch):
    part, pictures, reasons = images[start : start + batch], [], {}
    for path in part:
      try:
        picture = preprocess.decode(paths.reader(path.parent)(path.name))
        picture = preprocess.resize(picture, run.settings.train.resize)
        pictures.append(preprocess.center_crop(picture, crop))
      except (preprocess.BadImage, OSError) as error:
        reasons[path] = str(error)
    # Always the same shape, so that the network is compiled once.
    image = np.zeros((batch, crop, crop, 3), np.uint8)
    image[: len(pictures)] = np.reshape(pictures, (-1, crop, crop, 3))
    answers = iter(run.probabilities(image, fuse=fuse))
    for path in part:
      if path in reasons:
        yield path, None, reasons[path]
      else:
        yield path, next(answers), None


def _work(argv):
  parser = command.parser('predict', __doc__, of_a_run=True)
  parser.add_argument('--json', action='store_true', help='one object a line')
  parser.add_argument('--top', type=int, default=1, help='classes per image')
  parser.add_argument(
    '--fuse',
    action='store_true',
    help='average the class probabilities of all rounds',
  )
  parser.add_argument('--batch', type=int, default=32, help='images at a time')
  parser.add_argument('images', nargs='+', metavar='IMAGE_OR_DIR')
  args = parser.parse_args(argv[1:])
  if args.batch < 1 or args.top < 1:
    raise UserError(
      f'--batch and --top are at least 1, not {args.batch} and {args.top}.'
    )
  classes = trained.classes(args.workdir)
  found = images(args.images)
  batch = mesh.round_up(min(args.batch, len(found)), mesh.make())
  bad = 0
  answers = predict(args.workdir, found, fuse=args.fuse, batch=batch)
  with progress.bar(len(found), 'predict') as bar:
    for path, probability, reason in answers:
      bar.update()
      name = image_files.legible(str(path))
      if reason is not None:
        bad += 1
        print(f'{name}: {reason}', file=sys.stderr)
        continue
      best = np.argsort(-probability, kind='stable')[: args.top]
      named = [(classes[i], float(probability[i])) for i in best]
      if args.json:
        value = {
          'path': name,
          'class': named[0][0],
          'probability': named[0][1],
          'top': [{'class': n, 'probability': p} for n, p in named],
        }
        print(json.dumps(value, ensure_ascii=False))
      else:
        print(name, *(f'{n}\t{p:.4f}' for n, p in named), sep='\t')
  if bad:
    raise UserError(f'{bad} of {len(found)} images could not be read.')


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
