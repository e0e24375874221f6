"""The plain-text table that a command ends with."""

import textwrap
from collections.abc import Mapping

from sjft_jax.report import comparison, record, run, wording


def table(results: Mapping, settings: Mapping) -> str:
  """The plain-text table of a comparison or of a run, and its seconds.

  Args:
    results: the value of `results.json`.
    settings: of the run or the comparison.

  Returns:
    Aligned lines. Of a comparison, per arm: mean class accuracy in per cent,
    paired difference to the first arm in points with its 95 % interval, and
    images borrowed from each source, means over the seeds; the last in a table
    of its own where 100 columns are not enough. Of a run, a line per round.
  """
  lines = []
  if 'arms' in results:
    arms = comparison.ordered(results['arms'])
    rows = comparison.table(arms)
    lines = wording.aligned(rows)
    if max(map(len, lines)) > 100:
      cut = len(rows[0]) - len(comparison.source_names(arms))
      borrowed = [[row[0], *row[cut:]] for row in rows]
      lines = [
        *wording.aligned([row[:cut] for row in rows]),
        '',
        *wording.aligned(borrowed),
      ]
  elif results.get('rounds'):
    lines = wording.aligned(run.round_table(results['rounds'], settings))
  stages = ', '.join(f'{name} {s}' for name, s, _ in record.seconds(results))
  if stages:
    lines += ['', *textwrap.wrap(f'Seconds: {stages}', 100)]
  return '\n'.join(lines).lstrip('\n')
