"""Numbers and tables as text: for a terminal in ASCII, for a page typeset."""

import re
import textwrap


def percent(fraction, digits=1) -> str:
  """A fraction in per cent; a dash for None."""
  return '-' if fraction is None else f'{100 * fraction:.{digits}f}'


def points(fraction) -> str:
  """A difference of fractions in percentage points, with its sign."""
  return f'{100 * fraction:+.1f}'


def count(value) -> str:
  """With commas; a dash for nothing."""
  return f'{round(value):,}' if value else '-'


def short(value) -> str:
  """Three digits, or all those before the point."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def ordinal(n) -> str:
  """1st, 2nd, 3rd, ..."""
  teen = n % 100 in (11, 12, 13)
  return f'{n}' + (
    'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')
  )


def typeset(text) -> str:
  """The signs of a number that plain text has to spell."""
  if text == '-':
    return '\N{EN DASH}'
  text = text.replace('+-', '\N{PLUS-MINUS SIGN}')
  return re.sub(r'(?<![\w-])-(?=\d)', '\N{MINUS SIGN}', text)


def typeset_table(table) -> dict | None:
  """Head and rows without the columns that hold nothing; None without rows."""
  columns = [
    column
    for column in zip(*table, strict=True)
    if set(column[1:]) != {'-'} or column[0] == 'Verdict'
  ]
  head, *rows = zip(*columns, strict=True)
  rows = [(first, *map(typeset, cells)) for first, *cells in rows]
  return {'head': head, 'rows': rows} if rows else None


def aligned(table) -> list[str]:
  """Lines of a plain-text table, headings broken over several lines."""
  headings = [textwrap.wrap(cell, 17) for cell in table[0]]
  depth = max(map(len, headings))
  headings = [[''] * (depth - len(words)) + words for words in headings]
  rows = [*zip(*headings, strict=True), *table[1:]]
  width = [max(map(len, column)) for column in zip(*rows, strict=True)]
  first, *rest = width
  lines = [
    '  '.join([name.ljust(first), *map(str.rjust, cells, rest)]).rstrip()
    for name, *cells in rows
  ]
  rule = '-' * max(map(len, lines))
  return [*lines[:depth], rule, *lines[depth:]]
