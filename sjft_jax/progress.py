"""One look for every progress bar."""

import sys

import tqdm

# Of several processes, one shows its bars.
shown = True


def bar(total: int, label: str, unit: str = ' images', initial: int = 0):
  """A tqdm bar on stderr; a line every ten seconds where that is a file."""
  return tqdm.tqdm(
    total=total,
    desc=label,
    unit=unit,
    initial=initial,
    dynamic_ncols=True,
    mininterval=0.3 if sys.stderr.isatty() else 10,
    smoothing=0.1,
    disable=not shown,
    delay=1,  # a stage that is over at once says nothing
    leave=sys.stderr.isatty(),
  )
