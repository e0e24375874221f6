"""Plots as inline images that follow the page's light or dark scheme."""

import dataclasses
import io
import math
import re
import textwrap
import warnings
from collections.abc import Sequence

import markupsafe
import matplotlib.axes
import matplotlib.figure
import matplotlib.style
import matplotlib.ticker
import numpy as np

from sjft_jax.report import wording

# Colours that matplotlib writes, and the page's own that take their place, so
# that a plot follows the light or dark scheme of its page.
INK, RULE = '#010101', '#020202'
SERIES = tuple(f'#0303{i:02x}' for i in range(1, 7))
MARKERS = tuple(zip('os^DvP', '●■▲◆▼✚', strict=True))
# A curve of more points has so many markers. Colours alone come again, and not
# everybody can tell them apart.
FEW, MARKED = 12, 8
# Of a plot of K, with budget.images.
PROPORTION = (
  ' Where budget.images says how many are selected, K is only the proportion.'
)
THEME = {INK: 'currentColor', RULE: 'var(--rule)'} | {
  colour: f'var(--s{i})' for i, colour in enumerate(SERIES, 1)
}
STYLE = {
  'axes.edgecolor': RULE,
  'axes.labelcolor': INK,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'font.size': 10,
  'grid.color': RULE,
  'grid.linewidth': 0.8,
  'lines.linewidth': 1.8,
  'lines.markersize': 5.5,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'sjft_jax',
  'text.color': INK,
  'xtick.color': RULE,
  'xtick.labelcolor': INK,
  'ytick.color': RULE,
  'ytick.labelcolor': INK,
  'ytick.major.size': 0,
}


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve with an optional band around it."""

  label: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Dots:
  """The values of an arm over the seeds, their mean and a range around it."""

  label: str
  values: Sequence[float]
  mean: float
  low: float
  high: float


def curves(
  name, title, x_label, y_label, lines, starts=(), note=''
) -> dict | None:
  """A plot of curves; None where no curve has two points."""
  if not any(np.isfinite(line.y).sum() > 1 for line in lines):
    return None
  # Lines beyond the last colour begin again with other markers. One that has no
  # point is not named, and its colour is left for other plots of the page.
  n = len(SERIES)
  style = [
    (line, (SERIES[i % n], MARKERS[(i + i // n) % n]))
    for i, line in enumerate(lines)
    if np.isfinite(line.y).any()
  ]

  def paint(axes):
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(visible=False, axis='x')
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    for x in starts:
      axes.axvline(x, color=RULE, linewidth=0.8)
    for i, (line, (colour, (marker, _))) in enumerate(style):
      if line.low is not None:
        axes.fill_between(
          line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0
        )
      n = len(line.x)
      step = max(len(style), round(n / MARKED)) if n > FEW else 1
      # Each a little later than the last, so that none hides another.
      axes.plot(
        line.x,
        line.y,
        color=colour,
        marker=marker,
        markevery=(i % step, step),
      )

  alt = [f'{title} in {y_label} by {x_label}.']
  for line, _ in style:
    y = line.y if len(line.y) <= FEW else [line.y[0], line.y[-1]]
    joint = ', ' if len(line.y) <= FEW else ' to '
    alt.append(f'{line.label}: {joint.join(wording.short(v) for v in y)}.')
  key = [
    (SERIES.index(colour) + 1, glyph, line.label)
    for line, (colour, (_, glyph)) in style
  ]
  return {
    'title': title,
    'note': note,
    'key': key,
    'svg': _svg(name, ' '.join(alt), 2.7, paint),
  }


def dots(name, title, unit, arms, note, first=0) -> dict | None:
  """A row of seeds for each arm; `first` is the colour of the first row."""
  if not arms:
    return None

  def paint(axes):
    axes.set(xlabel=unit, ylim=(0.5 - len(arms), 0.8), yticks=[])
    axes.grid(visible=False, axis='y')
    if first:
      axes.axvline(0, color=INK, linewidth=1)
    for y, arm in enumerate(arms):
      colour = SERIES[(first + y) % len(SERIES)]
      empty = {'markerfacecolor': 'none', 'markeredgecolor': colour}
      axes.plot(arm.values, [-y] * len(arm.values), 'o', **empty)
      axes.plot([arm.low, arm.high], [-y, -y], color=colour, linewidth=2.5)
      axes.plot(arm.mean, -y, '|', color=colour, ms=16, markeredgewidth=2.5)
      axes.text(
        0,
        0.3 - y,
        textwrap.shorten(arm.label, 60, placeholder=' …'),
        transform=axes.get_yaxis_transform(),
        parse_math=False,
        in_layout=False,
      )

  alt = [f'{title} in {unit}.']
  for arm in arms:
    low, mean, high = map(wording.short, (arm.low, arm.mean, arm.high))
    span = '' if math.isnan(arm.low) else f', from {low} to {high}'
    alt.append(f'{arm.label}: {mean}{span}.')
  svg = _svg(name, ' '.join(alt), 0.7 + 0.6 * len(arms), paint)
  return {'title': title, 'note': note, 'key': [], 'svg': svg}


def bars(name, title, x_label, y_label, bar_n, line_n, labels, starts) -> dict:
  """Bars from 0, and what they are compared with as steps over them.

  Args:
    name: unique in the page.
    title: of the plot.
    x_label: what the bars are.
    y_label: their unit.
    bar_n: heights, float [n].
    line_n: heights of the steps, float [n].
    labels: what the bars and the steps are called.
    starts: positions before which a line parts the bars.
  """
  n = len(bar_n)

  def paint(axes):
    axes.set(xlabel=x_label, ylabel=y_label, xticks=[], xlim=(-0.5, n - 0.5))
    axes.grid(visible=False, axis='x')
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
    for x in starts:
      axes.axvline(x - 0.5, color=RULE, linewidth=0.8)
    axes.bar(range(n), bar_n, width=0.9, color=SERIES[2])
    edges = np.arange(n + 1) - 0.5
    axes.stairs(line_n, edges, baseline=None, color=SERIES[1], linewidth=1.2)

  sums = ', '.join(
    f'{label} {wording.short(sum(values))} in all'
    for label, values in zip(labels, (bar_n, line_n), strict=True)
  )
  key = list(zip((3, 2), '■━', labels, strict=True))
  alt = f'{title} in {y_label} by {x_label}: {sums}.'
  return {
    'title': title,
    'note': '',
    'key': key,
    'svg': _svg(name, alt, 1.5, paint),
  }


def thin(points, most) -> np.ndarray:
  """At most so many points, the means of neighbouring ones; float [2, n]."""
  size = math.ceil(len(points) / most) or 1
  means = [
    np.mean(points[i : i + size], axis=0) for i in range(0, len(points), size)
  ]
  return np.transpose(means)


def matrix(name, title, value_cc, note) -> dict:
  """Values from 0 to 1 as cells, stronger if larger; rows from the top."""

  def paint(axes):
    axes.set(xlabel='answer', ylabel='true class', xticks=[], yticks=[])
    axes.grid(visible=False)
    # One colour on any ground; small shares must still be seen.
    colour = np.array([31, 127, 138, 0]) / 255
    image_ccr = np.tile(colour, (*value_cc.shape, 1))
    image_ccr[..., 3] = np.sqrt(value_cc)
    axes.imshow(image_ccr, interpolation='nearest')

  # Classes without test images have empty rows.
  diagonal = np.diagonal(value_cc)[value_cc.any(axis=1)].mean()
  alt = (
    f'{title}: on average {wording.percent(diagonal)} % lie on the diagonal.'
  )
  return {
    'title': title,
    'note': note,
    'key': [],
    'svg': _svg(name, alt, 4.6, paint),
  }


def _svg(name, alt, height, paint) -> markupsafe.Markup:
  """What `paint` draws on the axes, as an inline image in the page's colours.

  Args:
    name: unique in the page; every id of the image begins with it.
    alt: what the image says, in words.
    height: inches, beside a width of 4.6.
    paint: draws on matplotlib axes.
  """
  buffer = io.StringIO()
  # The defaults first: no one's matplotlibrc may change the page.
  with matplotlib.style.context(['default', STYLE]), warnings.catch_warnings():
    # Text stays text, so the reader's fonts draw what matplotlib's lack.
    warnings.filterwarnings('ignore', 'Glyph')
    figure = matplotlib.figure.Figure((4.6, height), layout='constrained')
    paint(figure.add_subplot())
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
  found = re.search(r'viewBox="(.*?)".*?</defs>(.*)', buffer.getvalue(), re.S)
  box, body = found.groups()
  body = re.sub(r'(id="|href="#|url\(#)', rf'\1{name}-', body)
  body = body.replace('xlink:href', 'href')
  body = re.sub(r' font-family: [^;\"]*;', '', body)
  for colour, themed in THEME.items():
    body = body.replace(colour, themed)
  opening = markupsafe.Markup('<svg role="img" aria-label="{}" viewBox="{}">')
  return opening.format(alt, box) + markupsafe.Markup(body)
