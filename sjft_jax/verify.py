"""Checks a search again: python -m sjft_jax.verify --workdir=DIR.

Certificate, neighbours and edges must be byte for byte as the search wrote
them. Then a random sample of target and source images is described anew from
the image files, and their distances are computed by the formula as it is
published, in float64: listed ones must agree, unlisted ones may not be nearer
than the last that is listed.
"""

import sys

import numpy as np

from sjft_jax import command, machine, mesh, retrieval, streams
from sjft_jax.errors import UserError

# Two ways to sum thousands of float64 numbers differ by less, in nats.
TOLERANCE = 1e-9
_EPSILON = 2.2204e-16


def published(target_d, source_sd, describer):
  """Distances of one target by the published formula, float64 [s], nats.

  D = 1/2 sum w [p log((p + e) / (q + e)) + q log((q + e) / (p + e))]
  """
  p = target_d / describer.pixels_d
  q = source_sd / describer.pixels_d[None]
  ratio_sd = (p[None] + _EPSILON) / (q + _EPSILON)
  term_sd = p[None] * np.log(ratio_sd) + q * np.log(1 / ratio_sd)
  return 0.5 * (term_sd * describer.weight_d[None]).sum(axis=1)


def verify(workdir, *, targets, sources, seed):
  """Checks a finished search.

  Args:
    workdir: directory of the run.
    targets: target images drawn.
    sources: source images drawn, beside a few neighbours of each target image.
    seed: of the draw.

  Returns:
    What was checked: {name: number}.

  Raises:
    UserError: at the first thing that is wrong.
  """
  run = retrieval.reopen(workdir, mesh.own(mesh.make()))
  rng = np.random.default_rng(seed)
  rows = _draw(rng, len(run.target), targets)
  table = run.table
  picked = [_draw(rng, len(run.source), sources)]
  for row in rows:
    listed = np.flatnonzero(table.index_qk[row] >= 0)
    some = np.union1d(_draw(rng, len(listed), 6), [0, len(listed) - 1])
    picked.append(table.index_qk[row, listed[some]])
  picked = np.unique(np.concatenate(picked))
  target, source = (
    streams.Described(run.describer, images.subset(some)).one_block()
    for images, some in ((run.target, rows), (run.source, picked))
  )
  if len(target.index_n) < len(rows):
    raise UserError('A target image of the search cannot be read any more.')
  unreadable = run.certificate['unreadable']
  for name in np.delete(run.source.ids[picked], source.index_n).tolist():
    if name not in unreadable:
      raise UserError(f'{name} was searched and cannot be read any more.')
  listed_pairs = unlisted_pairs = 0
  for row, counts_d in zip(rows, target.counts_nd, strict=True):
    distance_s = published(counts_d, source.counts_nd, run.describer)
    rank_of = {i: k for k, i in enumerate(table.index_qk[row]) if i >= 0}
    full = len(rank_of) == run.certificate['k']
    last = table.distance_qk[row, -1] if full else np.inf
    for index, distance in zip(picked[source.index_n], distance_s, strict=True):
      rank = rank_of.get(index)
      if rank is None and run.source.ids[index] in unreadable:
        continue  # It can be read again.
      if rank is None and distance >= last - TOLERANCE:
        unlisted_pairs += 1
        continue
      stated = 'not listed'
      if rank is not None:
        stated = table.distance_qk[row, rank]
        if abs(stated - distance) <= TOLERANCE * max(1, distance):
          listed_pairs += 1
          continue
      raise UserError(
        f'{run.target.ids[row]} and {run.source.ids[index]} are '
        f'{distance:.12g} nats apart, but the search has: {stated}, the last '
        f'neighbour at {last:.12g}. {_advice(run.certificate)}'
      )
  return {
    'target images': len(rows),
    'source images': len(picked),
    'distances that agree': listed_pairs,
    'images rightly left out': unlisted_pairs,
  }


def _advice(certificate):
  there, here = certificate.get('described_on'), machine.described()
  if there in (None, here):
    return 'Search again in another --workdir.'
  return (
    f'It described them on {machine.words(there)}, and this is '
    f'{machine.words(here)}, which may be why: verify it on such a machine, '
    'or search again in another --workdir.'
  )


def _draw(rng, total, many):
  return np.sort(rng.choice(total, min(total, many), replace=False))


def _work(argv):
  parser = command.parser('verify', __doc__, of_a_run=True)
  parser.add_argument('--targets', type=int, default=16, help='images drawn')
  parser.add_argument('--sources', type=int, default=256, help='images drawn')
  parser.add_argument('--seed', type=int, default=0, help='of the draw')
  args = parser.parse_args(argv[1:])
  if args.targets < 1 or args.sources < 0:
    raise UserError(
      f'--targets is at least 1 and --sources at least 0, not {args.targets} '
      f'and {args.sources}.'
    )
  if args.seed < 0:
    raise UserError(f'--seed is at least 0, not {args.seed}.')
  checked = verify(
    args.workdir, targets=args.targets, sources=args.sources, seed=args.seed
  )
  print('certificate, neighbours and edges: as the search wrote them')
  for name, number in checked.items():
    print(f'{name}: {number}')


if __name__ == '__main__':
  sys.exit(command.guarded(_work, sys.argv))
