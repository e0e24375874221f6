"""Why two images are as far apart as they are.

  python -m sjft_jax.explain --workdir=DIR TARGET_ID SOURCE_ID

The distance is a sum over layers, filters and bins. Prints the sums per layer
and per filter, writes every bin to a table and draws the filters that count
most; ids are those of neighbours.parquet.
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from sjft_jax import (
  command,
  files,
  mesh,
  paths,
  reasons,
  retrieval,
  streams,
)
from sjft_jax.data import preprocess
from sjft_jax.errors import UserError

_COLOURS = '#0072b2', '#d55e00'


def explain(workdir, target_id, source_id, out, top):
  """Prints the contributions, and writes `out`.png and `out`.csv.

  Args:
    workdir: directory of a run that has searched.
    target_id: of the target image.
    source_id: of the source image, a neighbour or not.
    out: path of both files, without suffix.
    top: how many filters are printed, those that add most first.

  Raises:
    UserError: if there is no such search or image, or one cannot be read.
  """
  run = retrieval.reopen(workdir, mesh.own(mesh.make()))
  row = _position(run.target, target_id, 'target')
  index = _position(run.source, source_id, 'source')
  describer = run.describer
  target_d = _counts(describer, run.target.subset([row]))
  source_d = _counts(describer, run.source.subset([index]))
  share_cb = reasons.contributions(target_d, source_d, describer)
  bank = describer.bank
  settings = run.settings.describe
  layers = [settings.bank]
  if settings.bank == 'conv':
    # As the bank orders them, which may be other than they were named.
    layers = list(dict.fromkeys(n.partition(',')[0] for n in bank.names))
  total = share_cb.sum()
  print(f'{target_id} and {source_id}: {total:.9f} nats apart')
  (rank,) = np.nonzero(run.table.index_qk[row] == index)
  if len(rank):
    stated = run.table.distance_qk[row, rank[0]]
    print(f'neighbour of rank {rank[0]}, {stated:.9f} nats in the search')
  else:
    last = run.table.distance_qk[row, -1]
    print(f'not among the neighbours, the last of which is at {last:.9f} nats')
  print(f'\n{"layer":30}{"nats":>12}{"share":>8}')
  for layer in np.unique(bank.layer_c):
    _row(layers[layer], share_cb[bank.layer_c == layer].sum(), total)
  order = np.argsort(-share_cb.sum(axis=1), kind='stable')
  print(f'\n{"filter":30}{"nats":>12}{"share":>8}  bins that add most')
  for channel in order[:top]:
    best = np.argsort(-share_cb[channel], kind='stable')[:3]
    bins = ', '.join(f'{b}: {share_cb[channel, b]:.6f}' for b in best)
    _row(bank.names[channel], share_cb[channel].sum(), total, f'  {bins}')
  rest = share_cb[order[top:]].sum()
  _row(f'the other {len(order[top:])}', rest, total)
  _row('all', total, total)
  pictures = run.target.read(row), run.source.read(index)
  _write_table(f'{out}.csv', share_cb, target_d, source_d, bank)
  figure = _picture(
    pictures, (target_id, source_id), share_cb, target_d, source_d, bank, order
  )
  with files.replacing(f'{out}.png') as file:
    figure.savefig(file, format='png', dpi=110)
  print(f'\n{out}.png, and every bin in {out}.csv')


def _row(name, nats, total, more=''):
  share = nats / total if total else 0.0
  print(f'{name:30}{nats:12.6f}{share:8.1%}{more}')


def _position(dataset, name, which):
  (found,) = np.nonzero(dataset.ids == name)
  if not len(found):
    raise UserError(
      f'{name!r} is no {which} image of this search; ids look like '
      f'{str(dataset.ids[0])!r} and stand in selection/neighbours.parquet.'
    )
  return int(found[0])


def _counts(describer, dataset):
  block = streams.Described(describer, dataset).one_block()
  if block.bad:
    raise UserError(f'{dataset.ids[0]} cannot be read: {block.bad[0][1]}')
  return block.counts_nd[0]


def _write_table(path, share_cb, target_d, source_d, bank):
  shape = share_cb.shape
  target_cb, source_cb = target_d.reshape(shape), source_d.reshape(shape)
  files.write_csv(
    path,
    ('layer', 'filter', 'bin', 'target_pixels', 'source_pixels', 'nats'),
    (
      (
        bank.layer_c[channel],
        bank.names[channel],
        b,
        target_cb[channel, b],
        source_cb[channel, b],
        repr(float(share_cb[channel, b])),
      )
      for channel, b in np.ndindex(shape)
    ),
  )


def _picture(pictures, names, share_cb, target_d, source_d, bank, order):
  """Both images, all filters, and the histograms of those that add most."""
  figure = Figure(figsize=(11, 7), layout='constrained')
  grid = figure.add_gridspec(3, 4)
  for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
    axes = figure.add_subplot(grid[0, i])
    axes.imshow(preprocess.decode(picture))
    axes.set_title(
      name, fontsize=8, color=_COLOURS[i], wrap=True, parse_math=False
    )
    axes.axis('off')
  axes = figure.add_subplot(grid[0, 2:])
  sums_c = share_cb.sum(axis=1)
  axes.bar(np.arange(len(sums_c)), sums_c, width=1.0, color='0.5')
  axes.set_title('nats per filter', fontsize=9)
  for layer in np.unique(bank.layer_c)[1:]:
    axes.axvline(
      np.flatnonzero(bank.layer_c == layer)[0] - 0.5, color='k', lw=0.6
    )
  target_cb = target_d.reshape(share_cb.shape)
  source_cb = source_d.reshape(share_cb.shape)
  for place, channel in enumerate(order[:8]):
    axes = figure.add_subplot(grid[1 + place // 4, place % 4])
    edges = np.arange(share_cb.shape[1] + 1) - 0.5
    for counts_b, colour in zip(
      (target_cb[channel], source_cb[channel]), _COLOURS, strict=True
    ):
      axes.stairs(counts_b, edges, color=colour, lw=1.2)
    axes.set_title(
      f'{bank.names[channel]}: {sums_c[channel]:.4f} nats', fontsize=7
    )
    axes.tick_params(labelsize=7)
    if place % 4 == 0:
      axes.set_ylabel('pixels per bin', fontsize=8)
  return figure


def _work(argv):
  parser = command.parser('explain', __doc__, of_a_run=True)
  parser.add_argument(
    '--out',
    help='where picture and table go, without suffix; default: '
    'WORKDIR/explain/pair',
  )
  parser.add_argument('--top', type=int, default=10, help='filters printed')
  for side in 'target', 'source':
    parser.add_argument(
      side, metavar=f'{side.upper()}_ID', help='as neighbours.parquet has it'
    )
  args = parser.parse_args(argv[1:])
  out = args.out or str(paths.path(args.workdir) / 'explain' / 'pair')
  explain(args.workdir, args.target, args.source, out, args.top)


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
