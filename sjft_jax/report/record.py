"""Reads what a run or a comparison leaves in its directory."""

import contextlib
import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping

from sjft_jax import files, paths


def read(path) -> dict:
  """A JSON object; empty where the file is missing."""
  return files.read_json(path, {})


def csv_rows(path, most=None) -> list[dict]:
  """A dict per line, of the first ones; none where the file is missing."""
  if not path.exists():
    return []
  with files.opened_text(path) as file:
    return list(itertools.islice(csv.DictReader(file), most))


def json_lines(path) -> Iterator[dict]:
  """The objects of a file whose last line a kill may have cut short."""
  if path.exists():
    for line in paths.read(path).decode().splitlines():
      with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(line)


def flat(value, prefix='') -> Iterator[tuple[str, object]]:
  """('group.field', value) of nested mappings."""
  for name, item in value.items():
    if isinstance(item, Mapping):
      yield from flat(item, f'{prefix}{name}.')
    else:
      yield prefix + name, item


def seconds(results) -> list[tuple[str, str, float]]:
  """(stage, seconds, fraction of the longest stage)."""
  stages = list(flat(results.get('seconds', {})))
  longest = max((s for _, s in stages), default=0) or 1
  return [(stage, f'{s:,.1f}', s / longest) for stage, s in stages]


def number(value) -> float:
  """NaN for None."""
  return math.nan if value is None else value


def borrowed(lent) -> int:
  """Source images of all sources in a row of `rounds`."""
  return sum((lent.get('images_selected') or {}).values())


def class_name(source, label) -> str:
  """The class, and its source where there are several."""
  group, _, name = source.classes[label].partition(':')
  return f'{name} ({group})' if len(source.sources) > 1 else name


def run_directories(workdir, arm) -> list:
  """The directory of every seed of an arm, by seed."""
  name = re.compile(re.escape(arm) + r'-(\d+)')
  found = {
    int(match[1]): path
    for path in (workdir / 'runs').glob('*')
    if (match := name.fullmatch(path.name))
  }
  return [found[seed] for seed in sorted(found)]


def losses(
  path, pretraining=True
) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
  """{loss: (update, nats)} of a metrics.jsonl, updates counted over the rounds,
  with those of pretraining before them or not, and the updates at which rounds
  begin, but for the first."""
  # By round and step, so that the lines of a resumed run replace those it
  # had already written.
  rows = {
    (r['round'], r['step']): r
    for r in json_lines(path)
    if pretraining or r['round'] >= 0
  }
  names = dict.fromkeys(k for row in rows.values() for k in row)
  points = {name: [] for name in names if 'loss' in name}
  done, starts, last = 0, [], None
  for m, step in sorted(rows):
    if last and m != last[0]:
      done += last[1]
      starts.append(done + step)
    last = m, step
    for name in points:
      if rows[last].get(name) is not None:
        points[name].append((done + step, rows[last][name]))
  return points, starts
