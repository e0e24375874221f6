"""What is said of arms, of what was tried for them, and how it is drawn."""

import collections
import json
import re

import numpy as np
import pytest

from sjft_jax.report import comparison, plots


def leave_run(directory, accuracy, *, k=3, losses=2, **settings):
  """Leaves what curves are drawn from, a round per accuracy."""
  directory.mkdir(parents=True)
  rounds = [
    {
      'round': m,
      'mean_class_accuracy': right,
      'mean_k': k + m,
      'images_selected': {'a': 7},
    }
    for m, right in enumerate(accuracy)
  ]
  rows = [
    {'round': m, 'step': step, 'target_loss': 2 / step}
    for m in range(len(rounds))
    for step in range(1, losses + 1)
  ]
  (directory / 'results.json').write_text(json.dumps({'rounds': rounds}))
  (directory / 'config.json').write_text(json.dumps({'settings': settings}))
  (directory / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def figures(workdir, *names):
  """{title: plot} of arms of two seeds."""
  arms = {
    name: {
      'title': name,
      'mean_class_accuracy': [0.5, 0.5],
      'mean': 0.5,
      'difference': [0, 0],
      'difference_mean': 0,
    }
    for name in names
  }
  found = filter(None, comparison.figures(workdir, arms))
  return {plot['title']: plot for plot in found}


def test_a_seed_that_ended_early_keeps_its_last_value(tmp_path):
  leave_run(tmp_path / 'runs' / 'few-0', [0.5, 0.6, 0.7])
  leave_run(tmp_path / 'runs' / 'few-1', [0.9])
  found = figures(tmp_path, 'few')
  accuracy = found['Accuracy over the rounds']
  # Of the first seed alone, the last rounds would fall to 60 and 70.
  assert 'few: 70, 75, 80.' in accuracy['svg']
  assert 'few: 3, 3.5, 4.' in found['Mean K']['svg']
  assert 'keeps its last value' in accuracy['note']
  loss = found['Loss on the target']
  assert 'few: 2, 1.' in loss['svg']
  assert 'as far as all seeds of an arm go' in loss['note']


def test_nothing_is_said_of_ends_where_all_seeds_are_equally_long(tmp_path):
  for seed in range(2):
    leave_run(tmp_path / 'runs' / f'few-{seed}', [0.5, 0.6])
  for plot in figures(tmp_path, 'few').values():
    assert 'ended early' not in plot['note']
    assert 'as far as' not in plot['note']


@pytest.mark.parametrize(
  ('settings', 'shown'),
  [
    ({'selection': 'neighbours'}, True),
    ({'selection': 'random', 'budget': {'images': 0}}, True),
    ({'selection': 'random', 'budget': {'images': 9}}, False),
    ({'selection': 'all'}, False),
  ],
)
def test_k_is_of_arms_that_it_decides_about(tmp_path, settings, shown):
  leave_run(tmp_path / 'runs' / 'near-0', [0.5, 0.6], selection='neighbours')
  leave_run(tmp_path / 'runs' / 'other-0', [0.5, 0.6], k=5, **settings)
  plot = figures(tmp_path, 'near', 'other')['Mean K']
  assert 'near: 3, 4.' in plot['svg']
  assert ('other: 5, 6.' in plot['svg']) == shown
  assert len(plot['key']) == 1 + shown
  assert 'nan' not in plot['svg']
  assert 'proportion' not in plot['note']


def test_k_of_so_many_images_is_only_their_proportion(tmp_path):
  leave_run(tmp_path / 'runs' / 'a-0', [0.5, 0.6], budget={'images': 9})
  assert 'K is only the proportion' in figures(tmp_path, 'a')['Mean K']['note']


def test_long_curves_are_told_apart_without_their_colours():
  y = np.arange(40.0)
  # All on one another, so that markers can hide each other.
  lines = [plots.Line(str(i), y, y) for i in range(7)]
  plot = plots.curves('x', 'Title', 'updates', 'nats', lines)
  # The name of what is drawn at a point is of its shape and colour; the ticks
  # of the axes have the colour of rules.
  drawn = re.findall(
    r'<use href="#(x-m\w+)" x="(\S+)" y="(\S+)" style="[^"]*--s\d', plot['svg']
  )
  many = collections.Counter(name for name, *_ in drawn)
  assert len(many) == 7
  assert all(5 <= count <= 10 for count in many.values())
  # And none of them hides another's.
  assert len({tuple(point) for _, *point in drawn}) == len(drawn)
  assert len({(colour, glyph) for colour, glyph, _ in plot['key']}) == 7


# ------------------------------------------------------------------ tuning


def row(accuracy, **choice):
  """What one choice came to on the folds."""
  return choice | {'mean_class_accuracy': accuracy}


def table(tried, chosen, **more):
  """Rows of the tuning table, without the arm."""
  found = {'a': {'tried': tried, 'chosen': chosen} | more}
  head, *rows = comparison.tuning_table(found, {'a': {'title': 'A'}})
  return [dict(zip(head, cells, strict=True)) for cells in rows]


@pytest.mark.parametrize(
  ('steps', 'rate', 'cells'),
  [
    (200, 0.1, ('200, the largest tried', '0.1', 'yes, at an end')),
    (50, 0.1, ('50, the smallest tried', '0.1', 'yes, at an end')),
    (100, 0.1, ('100', '0.1', 'yes')),
    (100, 0.3, ('100', '0.3, the largest tried', 'yes, at an end')),
  ],
)
def test_a_choice_at_the_end_of_what_was_tried_is_said_to_be(
  steps, rate, cells
):
  tried = [
    row([0.5, 0.6], steps=n, learning_rate=r, initial=7)
    for n in (100, 50, 200)
    for r in (0.1, 0.01, 0.3)
  ]
  rows = table(tried, {'steps': steps, 'learning_rate': rate, 'initial': 7})
  names = ('Updates', 'Learning rate', 'Chosen')
  chosen = [each for each in rows if each['Chosen'] != '-']
  assert [tuple(each[name] for name in names) for each in chosen] == [cells]
  # Of one value nothing is known, and what is not chosen ends nowhere.
  assert {each['K0'] for each in rows} == {'7'}
  rest = [each for each in rows if each not in chosen]
  assert not any('tried' in ' '.join(each.values()) for each in rest)


def test_what_borrowing_gains_on_folds_stands_beside_the_best_that_borrows():
  tried = [
    row([0.5, 0.6], steps=9, learning_rate=0.1, source_weight=1.0),
    row([0.6, 0.5], steps=9, learning_rate=0.1, source_weight=0.3),
    row([0.2, 0.4], steps=9, learning_rate=0.1, source_weight=0.1),
    row([0.4, 0.6], steps=9, learning_rate=0.1, source_weight=0),
    row([0.4, 0.7], steps=9, learning_rate=0.3, source_weight=0),
  ]
  chosen = {'steps': 9, 'learning_rate': 0.3, 'source_weight': 0}
  name = 'Points against the best without a source'
  rows = table(tried, chosen, gain=[-0.12, 0.13])
  gain = '+0.0 [-12.0, +13.0], best of 3'
  # Of equal ones the lower weight, as tuning has it.
  assert [each[name] for each in rows] == ['-', gain, '-', '-', '-']
  rows = table(tried, chosen)
  assert {each[name] for each in rows} == {'-'}
