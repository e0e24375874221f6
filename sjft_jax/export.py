"""A selection for other programs: python -m sjft_jax.export --workdir=DIR OUT.

--to=csv or parquet: one row for every pair of a target image and one of its
neighbours, with ids, classes, labels, rank and distance. --to=folder: also the
selected source images, in a directory per class, and images.csv, which tells
the id of each. --to=tar: the same as WebDataset shards; each sample holds the
image, its label (cls) and a json with its id, its class and all its pairs.
--to=tfds: the same as a data set for tfds.builder_from_directory, which reads
it as_data_source, without TensorFlow.
"""

import sys

from sjft_jax import command, paths, selected
from sjft_jax.errors import UserError
from sjft_jax.export_formats import FORMATS


def _work(argv):
  parser = command.parser('export', __doc__, of_a_run=True)
  parser.add_argument(
    '--to',
    required=True,
    choices=FORMATS,
    help='csv, parquet: pairs; folder, tar (WebDataset), tfds: images, too',
  )
  parser.add_argument(
    '--k', type=int, default=0, help='neighbours per target image; 0 = all'
  )
  parser.add_argument('out', metavar='OUT', type=paths.path)
  args = parser.parse_args(argv[1:])
  if args.k < 0:
    raise UserError(f'--k is at least 0, not {args.k}.')
  if args.out.exists():
    raise UserError(f'{args.out} exists already. Give another name.')
  selection = selected.load(args.workdir, args.k)
  FORMATS[args.to](selection, args.out)
  print(
    f'{len(selection.target_n)} pairs with {len(selection.index)} source '
    f'images are in {args.out}.'
  )


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
