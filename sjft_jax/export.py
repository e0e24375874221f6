"""A selection for other programs: python -m sjft_jax.export --workdir=DIR OUT.

Without --round and --k it is what the last finished round trained on. In a run
that has finished no round (rounds=0, for one) it is all that the search found;
but with another selection than neighbours or features, with budget.images or
budget.least_per_class, it is what budget.initial selects.

--to=csv or parquet: one row for every pair of a target image and a source image
that it draws, with ids, classes, labels, and rank and distance of the pair in
the search. --to=folder: also the selected source images, in a directory per
class, and images.csv, which tells the id of each. --to=tar: the same as
WebDataset shards; each sample holds the image, its label (cls) and a json with
its id, its class and all its pairs. --to=tfds: the same as a data set for
tfds.builder_from_directory, which reads it as_data_source, without TensorFlow.

selection=labelled has pairs that the search did not find: their rank and
distance are empty (null in a json; -1 and NaN in tfds). With selection=classes,
random and all every target image draws the same source images: there is one row
for each, without a target image, and a sample has no pairs.
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
  which = parser.add_mutually_exclusive_group()
  which.add_argument(
    '--round',
    metavar='M',
    help='what round M trained on, from 0, or last; 0 also before it has '
    'finished, and with rounds=0',
  )
  which.add_argument(
    '--k',
    type=int,
    help='the K nearest of every target image that the search found, whatever '
    'was trained on; 0 = all',
  )
  parser.add_argument('out', metavar='OUT', type=paths.path)
  args = parser.parse_args(argv[1:])
  if args.k is not None and args.k < 0:
    raise UserError(f'--k is at least 0, not {args.k}.')
  of_round = args.round
  if of_round not in (None, 'last'):
    if not of_round.isdecimal():
      raise UserError(f'--round is a number from 0, or last, not {of_round}.')
    of_round = int(of_round)
  if args.out.exists():
    raise UserError(f'{args.out} exists already. Give another name.')
  selection = selected.load(args.workdir, args.k, of_round)
  FORMATS[args.to](selection, args.out)
  what = f'{len(selection.index)} source images'
  if selection.shared:
    what += ' for all target images alike'
  else:
    what = f'{len(selection.target_n)} pairs with {what}'
  print(f'{what} ({selection.of}) are in {args.out}.')


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
