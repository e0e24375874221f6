"""The page of a run and of a comparison, read back as a browser would."""

import base64
import csv
import dataclasses
import html.parser
import json
import re

import cv2
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sjft_jax import reasons, round_files, suspects
from sjft_jax.data.dataset import Dataset
from sjft_jax.report import comparison as report_comparison
from sjft_jax.report import galleries, pages, plots, record, summary

NASTY = '<script>alert("1")</script> & \'q\' $\\frac$ 漢字'
VOID = {'img', 'link', 'meta'}


class Page(html.parser.HTMLParser):
  """The elements of a page; fails where tags do not nest."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.cells, self.open, self.texts = [], [], [], []
    self.feed(path.read_text(encoding='utf-8'))
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'tr':
      self.cells.append([])
    if tag in ('td', 'th'):
      self.cells[-1].append('')

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)
    if {'td', 'th'} & set(self.open):
      self.cells[-1][-1] += data

  @property
  def text(self):
    return ' '.join(' '.join(self.texts).split())

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]

  def row(self, first):
    """The cells of the row whose first cell says `first`."""
    rows = [c[1:] for c in self.cells if c[0] == first]
    assert len(rows) == 1, (first, rows)
    return rows[0]


def flat_png(value):
  image = np.full((8, 8, 3), value, np.uint8)
  return cv2.imencode('.png', image)[1].tobytes()


def dataset(name, classes, labels, sources=(), ids=None):
  """Image i is flat and its grey value is i; a pool has one class a source."""
  labels = np.asarray(labels, np.int32)
  ids = [f'{name}:{i:03d}' for i in range(len(labels))] if ids is None else ids
  return Dataset(
    name=name,
    classes=tuple(classes),
    ids=np.array(ids),
    labels=labels,
    sizes=np.zeros(len(labels), np.int64),
    read=flat_png,
    sources=sources,
    source=np.minimum(labels, len(sources) - 1) if sources else None,
  )


@pytest.fixture(scope='module')
def target():
  return dataset('target', ('cat', 'dog'), [0, 0, 0, 1, 1, 1])


@pytest.fixture(scope='module')
def pool():
  return dataset('pool', ('a:x', 'b:y'), [0] * 40 + [1] * 20, ('a', 'b'))


def write_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding='utf-8')


def make_run(
  workdir,
  target,
  pool,
  *,
  selection='neighbours',
  rounds=2,
  depth=45,
  k=3,
  grows=0,
  images=0,
):
  """Leaves what a run leaves; target i's neighbours are images i, i + 1, ..."""
  n, random = len(target), np.random.default_rng(0)
  write_json(
    workdir / 'config.json',
    {
      'settings': {
        'selection': selection,
        'seed': 0,
        'budget': {
          'initial': k,
          'maximum': depth,
          'images': images,
          'least_per_class': 1,
        },
      }
    },
  )
  write_json(
    workdir / 'data.json',
    {
      'target': {'classes': target.classes, 'train': n, 'test': 9},
      'source': {'images': {'a': 40, 'b': 20}},
    },
  )
  write_json(workdir / 'selection' / 'certificate.json', {'seen': 60})
  if selection in galleries.GALLERIES:
    source = np.arange(n)[:, None] + np.arange(depth)[None]
    table = {
      'target_id': np.repeat(target.ids, depth),
      'source_id': pool.ids[source.ravel()],
      'rank': np.tile(np.arange(depth, dtype=np.int32), n),
      'distance': np.tile(np.arange(depth) + 0.25, n),
    }
    pq.write_table(
      pa.table(table), workdir / 'selection' / 'neighbours.parquet'
    )
  rows, metrics = [], []
  for m in range(rounds):
    # Of an entropy of 0.5004.
    posterior_qc = 0.2 + 0.6 * np.eye(2)[random.integers(2, size=n)]
    now_q = np.full(n, k + m * grows)
    write_round(workdir, target, m, posterior_qc, now_q, now_q + 2)
    borrowed = {'a': 0, 'b': 0} if selection == 'none' else {'a': 7, 'b': 1 + m}
    rows.append(
      {
        'round': m,
        'mean_class_accuracy': 0.61234 + m / 10,
        'accuracy': 0.51234,
        'train_accuracy': 0.91234,
        'mean_k': k + 0.25 + m,
        'images_selected': borrowed,
        'classes_selected': {name: min(1, borrowed[name]) for name in borrowed},
      }
    )
    for step in range(1, 6):
      metrics.append({'round': m, 'step': step, 'target_loss': 2 / step})
  (workdir / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in metrics)
  )
  results = {'rounds': rows, 'seconds': {'search': 1.5, 'train': 1234.5}}
  if rounds:
    results['mean_class_accuracy'] = rows[-1]['mean_class_accuracy']
    results['fused'] = {'mean_class_accuracy': 0.77777}
  write_json(workdir / 'results.json', results)
  return workdir


def write_round(workdir, target, m, posterior_qc, k_q, next_q):
  """Leaves the files of a round that was right about all test images."""
  classes = len(target.classes)
  test = dataset('test', target.classes, range(classes))
  round_files.write(
    round_files.directory(workdir, m),
    posterior_qc.astype(np.float32),
    np.eye(classes, dtype=np.float32),
    k_q,
    next_q,
    target,
    test,
  )


def arm(title, accuracy, reference, interval, borrowed):
  difference = np.subtract(accuracy, reference).tolist()
  return {
    'title': title,
    'mean_class_accuracy': accuracy,
    'mean': np.mean(accuracy),
    'std': np.std(accuracy, ddof=1),
    'difference_to': 'plain',
    'difference': difference,
    'difference_mean': np.mean(difference),
    'difference_interval': interval,
    'fused': [0.8] * len(accuracy),
    'images_selected': borrowed,
  }


def make_comparison():
  """The value of a results.json whose arms are sorted by name."""
  plain, other = [0.5, 0.6], [0.7, 0.7]
  return {
    'arms': {
      'a-5': arm(NASTY, other, plain, [0.1, 0.2], {'a': 1234.4, 'b': 2}),
      'a': arm('random', plain, plain, [-0.011, 0.01], {'a': 5, 'b': 3}),
      'plain': arm('target only', plain, plain, [0, 0], {'a': 0, 'b': 0}),
    },
    'seconds': {'pretrain': 12.345, 'train': 1234},
    'versions': {'jax': '9.9.9'},
  }


@pytest.fixture
def comparison():
  return make_comparison()


@pytest.fixture(scope='module')
def comparison_page(tmp_path_factory, target, pool):
  workdir, comparison = tmp_path_factory.mktemp('comparison'), make_comparison()
  write_json(workdir / 'results.json', comparison)
  write_json(workdir / 'config.json', {'settings': {'seeds': 2}})
  for name in comparison['arms']:
    selection = 'none' if name == 'plain' else 'neighbours'
    for seed in range(2):
      directory = workdir / 'runs' / f'{name}-{seed}'
      k = 8 if name == 'a-5' else 3
      make_run(directory, target, pool, selection=selection, k=k)
  example = workdir / 'runs' / 'a-5-0'
  return Page(pages.write_comparison(workdir, example, target, pool))


@pytest.fixture(scope='module')
def run_page(tmp_path_factory, target, pool):
  workdir = make_run(tmp_path_factory.mktemp('run'), target, pool)
  return Page(pages.write_run(workdir, target, pool))


@pytest.mark.parametrize('kind', ['run_page', 'comparison_page'])
def test_page_stands_alone(kind, request):
  page = request.getfixturevalue(kind)
  for tag, attributes in page.elements:
    for name in attributes.keys() & {'src', 'href'}:
      assert attributes[name].startswith(('#', 'data:')), (tag, attributes)
    for url in re.findall(r'url\((.)', str(attributes)):
      assert url == '#'
  assert not page.all('script')


@pytest.mark.parametrize('kind', ['run_page', 'comparison_page'])
def test_page_can_be_read_without_seeing_it(kind, request):
  page = request.getfixturevalue(kind)
  ids = [a['id'] for _, a in page.elements if 'id' in a]
  assert len(ids) == len(set(ids))
  for _, attributes in page.elements:
    assert attributes.get('aria-labelledby', ids[0]) in ids
    if attributes.get('href', '').startswith('#'):
      assert attributes['href'][1:] in ids
  assert page.all('img')
  assert all(a['alt'] for a in page.all('img'))
  assert all(a['role'] == 'img' and a['aria-label'] for a in page.all('svg'))
  assert len(page.all('caption')) == len(page.all('table')) > 0
  assert all(a.get('scope') for a in page.all('th'))
  levels = [int(t[1]) for t, _ in page.elements if re.fullmatch(r'h\d', t)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert (np.diff(levels) <= 1).all()


def test_run_shows_its_numbers(run_page):
  assert run_page.row('0') == ['61.2', '51.2', '91.2', '3.25', '8']
  assert run_page.row('1') == ['71.2', '51.2', '91.2', '4.25', '9']
  assert run_page.row('a') == ['7', '40', '17.5', '1']
  assert '77.8 % mean class accuracy, rounds fused' in _facts(run_page)
  assert '71.2 % mean class accuracy after 2 rounds' in _facts(run_page)
  assert run_page.row('train')[-1] == '1,234.5'
  assert 'K, the neighbours a target image draws from' in run_page.text


def _facts(page):
  """'value label' of the headline numbers, which stand label first."""
  text = page.text
  return re.sub(r'(mean class [a-z0-9, ]*?) ([\d.]+ %)', r'\2 \1', text)


def test_comparison_shows_its_numbers(comparison_page):
  page = comparison_page
  # The reference first, though the file sorts it last.
  firsts = [cells[0] for cells in page.cells[1:4]]
  assert firsts == ['target only', NASTY, 'random']
  dash = '\N{EN DASH}'
  fused = '80.0'
  assert page.row('target only') == ['55.0 ± 7.1', fused, *[dash] * 4]
  gain = ['+15.0 [+10.0, +20.0]', 'gain', '1,234', '2']
  assert page.row(NASTY) == ['70.0 ± 0.0', fused, *gain]
  none = ['+0.0 [\N{MINUS SIGN}1.1, +1.0]', 'no gain shown', '5', '3']
  assert page.row('random') == ['55.0 ± 7.1', fused, *none]
  assert f'{NASTY}: 70.0 % mean class accuracy over 2 seeds' in page.text
  assert page.row('versions.jax') == ['9.9.9']


def tuned_page(workdir, target, pool, settings, tuning, arms=('plain', 'a-5')):
  """The page of a comparison of these arms, without curves."""
  results = make_comparison() | {'tuning': tuning}
  results['arms'] = {name: results['arms'][name] for name in arms}
  write_json(workdir / 'results.json', results)
  write_json(workdir / 'config.json', {'settings': settings})
  example = make_run(workdir / 'runs' / 'plain-0', target, pool, rounds=0)
  return Page(pages.write_comparison(workdir, example, target, pool))


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'target': {'per_class': 5, 'test': ''}}, 'each with its own draw'),
    ({'target': {'held_out': 0.2}}, 'each with its own draw'),
    (
      {'target': {'per_class': 0, 'held_out': 0.0, 'test': 'dir'}},
      'they vary by initial weights and batches alone',
    ),
    (
      {'arms': {'r': {'set': {'selection': 'random'}}}},
      'batches and the random images of the source alone',
    ),
    (
      {'arms': {'r': {'set': {'target': {'per_class': 5}}}}},
      'each with its own draw',
    ),
  ],
)
def test_what_differs_between_seeds_is_said(
  tmp_path, target, pool, settings, said
):
  page = tuned_page(tmp_path, target, pool, settings, {})
  assert said in page.text
  own = 'each with its own draw of the target images' in page.text
  assert own != ('All seeds have the same target images' in page.text)
  assert 'Each interval stands for itself' not in page.text


def test_of_many_intervals_one_in_twenty_is_wrong(comparison_page):
  assert 'of twenty arms without effect about one' in comparison_page.text


CHOSEN = {'steps': 9, 'learning_rate': 0.1}
TRIED = [
  CHOSEN | {'mean_class_accuracy': [0.5, 0.6]},
  CHOSEN | {'learning_rate': 0.01, 'mean_class_accuracy': [0.5, 0.5]},
]


def test_choices_at_an_end_are_named_outside_what_is_closed(
  tmp_path, target, pool
):
  tuning = {'a-5': {'chosen': CHOSEN, 'tried': TRIED}}
  tuning['plain'] = {'chosen': CHOSEN, 'tried': TRIED[:1]}
  page = tuned_page(tmp_path / 'one', target, pool, {}, tuning)
  said = f'{NASTY} chose the largest or the smallest value that was tried'
  assert page.text.index(said) < page.text.index('What was tried on folds')
  assert not page.all('script')
  names = 'plain', 'a', 'a-5'
  tuning = {name: tuning['a-5'] for name in names}
  page = tuned_page(tmp_path / 'all', target, pool, {}, tuning, names)
  assert '3 of 3 tuned arms chose the largest or the smallest' in page.text
  tuning = {'a-5': tuning['plain'] | {'tried': TRIED[:1]}}
  page = tuned_page(tmp_path / 'none', target, pool, {}, tuning)
  assert 'may do better beyond it' not in page.text


@pytest.mark.parametrize('test', ['', 'dir'])
def test_choices_that_saw_test_images_are_said_to_have(
  tmp_path, target, pool, test
):
  settings = {'target': {'per_class': 5, 'test': test}}
  tuning = {'a-5': {'chosen': CHOSEN, 'tried': TRIED}}
  page = tuned_page(tmp_path, target, pool, settings, tuning)
  said = 'the choices have seen labels of later seeds'
  assert (said in page.text) == (not test)
  assert 'optimistic' not in page.text


def test_what_decided_about_borrowing_is_said_to_be_optimistic(
  tmp_path, target, pool
):
  tried = [TRIED[0] | {'source_weight': 1}, TRIED[1] | {'source_weight': 0}]
  found = {'chosen': tried[0], 'tried': tried, 'gain': [0.01, 0.09]}
  page = tuned_page(tmp_path, target, pool, {}, {'a-5': found})
  assert '+5.0 [+1.0, +9.0], best of 1' in page.text
  assert 'the interval is optimistic' in page.text


def test_a_run_says_what_its_averaged_weights_come_to_and_when_it_ended(
  tmp_path, target, pool
):
  make_run(tmp_path, target, pool, selection='none')
  results = json.loads((tmp_path / 'results.json').read_text())
  settled = 'After round 1 no K changed: the remaining 3 were left out.'
  results |= {'settled': settled}
  results |= {'weight_fused': {'mean_class_accuracy': 0.655}}
  write_json(tmp_path / 'results.json', results)
  text = Page(pages.write_run(tmp_path, target, None)).text
  assert 'mean class accuracy, weights of the rounds averaged 65.5 %' in text
  assert f'{settled} 2 rounds' in text


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'grows': 2}, 'the harder an image, the more images it may draw from'),
    ({'grows': 0}, None),
    ({'grows': 2, 'selection': 'classes'}, 'the more is borrowed'),
    ({'grows': 2, 'selection': 'classes', 'images': 9}, None),
  ],
)
def test_hard_images_borrow_more_only_where_k_grows(
  tmp_path, target, pool, changes, said
):
  make_run(tmp_path, target, pool, **changes)
  text = Page(pages.write_run(tmp_path, target, pool)).text
  assert 'trained on both tasks at once' in text
  assert ('round after round' in text) == bool(said)
  assert not said or said in text
  assert ('K is only the proportion' in text) == ('images' in changes)


def test_a_run_on_the_whole_source_has_no_plot_of_k(tmp_path, target, pool):
  make_run(tmp_path, target, pool, selection='all')
  labels = [
    a['aria-label']
    for a in Page(pages.write_run(tmp_path, target, pool)).all('svg')
  ]
  assert any(label.startswith('Entropy') for label in labels)
  assert not any(label.startswith('K,') for label in labels)


def test_runs_of_an_arm_are_not_those_of_a_longer_name(comparison_page):
  # Two seeds of each arm; a-5-0 and a-5-1 are not seeds of a.
  labels = [a['aria-label'] for a in comparison_page.all('svg')]
  k = next(label for label in labels if label.startswith('Mean K'))
  assert 'random: 3.25, 4.25.' in k
  assert f'{NASTY}: 8.25, 9.25.' in k
  # What borrows nothing has no K.
  assert 'target only' not in k
  assert 'nan' not in ' '.join(labels)


def test_names_are_shown_as_text(tmp_path):
  target = dataset('target', (NASTY, 'dog'), [0, 1], ids=[NASTY, 'target:"/>'])
  pool = dataset('pool', (f'a:{NASTY}',), [0] * 60, ('a',))
  make_run(tmp_path, target, pool)
  (tmp_path / 'bad_images.csv').write_text('id,reason\n<b>.png,"&"\n')
  page = Page(pages.write_run(tmp_path, target, pool))
  assert not page.all('script')
  assert not [a for _, a in page.elements if 'onerror' in a]
  assert page.text.count(NASTY) > 10
  assert 'target:"/>' in page.text
  assert page.row('<b>.png') == ['&']
  assert f'Target image of class {NASTY}' in [a['alt'] for a in page.all('img')]


@pytest.mark.parametrize(
  ('depth', 'ranks'),
  [(50, [1, 10, 20, 30, 40]), (25, [1, 10, 20, 25]), (3, [1, 3]), (1, [1])],
)
def test_gallery_shows_the_neighbours_of_these_ranks(
  tmp_path, target, pool, depth, ranks
):
  make_run(tmp_path, target, pool, depth=depth)
  page = Page(pages.write_run(tmp_path, target, pool))
  images = [a for a in page.all('img') if 'neighbour' in a['alt']]
  shown = [re.match(r'\d+', a['alt'])[0] for a in images]
  assert list(map(int, shown)) == ranks * len(target)
  # One of each class first; target i's neighbour of rank r is image i + r - 1.
  expected = [i + r - 1 for i in (0, 3, 1, 4, 2, 5) for r in ranks]
  assert [_grey(a['src']) for a in images] == expected
  assert f'{ranks[-1] - 0.75:#.3g} nats' in page.text


def _grey(uri):
  data = base64.b64decode(uri.removeprefix('data:image/png;base64,'))
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert image.shape == (160, 160, 3)
  assert (image == image[0, 0]).all()
  return int(image[0, 0, 0])


def test_many_classes_are_sampled_evenly(tmp_path, pool):
  labels = np.repeat(np.arange(15), 2)
  target = dataset('target', [f'c{i:02d}' for i in range(15)], labels)
  make_run(tmp_path, target, pool, depth=1, rounds=0)
  page = Page(pages.write_run(tmp_path, target, pool))
  shown = [a['alt'][-3:] for a in page.all('img') if 'Target' in a['alt']]
  assert shown == [f'c{i:02d}' for i in range(0, 15, 2)]


def test_only_the_first_k_neighbours_count_as_borrowed(tmp_path, target):
  # Targets 0..5 with K = 3 reach images 0..7: x holds 0..3, y holds 4..59.
  pool = dataset('pool', ('a:x', 'b:y'), [0] * 4 + [1] * 56, ('a', 'b'))
  make_run(tmp_path, target, pool, rounds=0)
  page = Page(pages.write_run(tmp_path, target, pool))
  assert page.row('x')[-1] == '4 of 4'
  assert page.row('y')[-1] == '4 of 56'
  # cat: 012 123 234; dog: 345 456 567.
  assert page.row('cat')[:2] == ['x (a)\xa089 %', 'y (b)\xa011 %']
  assert page.row('dog')[:2] == ['y (b)\xa089 %', 'x (a)\xa011 %']
  assert page.row('a') == ['4', '40', '10.0', '1']


@pytest.mark.parametrize(
  ('selection', 'order'),
  # By next K, then wrong before right, then entropy; without K the last two.
  [('neighbours', [5, 2, 1, 0, 4, 3]), ('none', [2, 1, 0, 5, 4, 3])],
)
def test_hardest_images_come_first(tmp_path, target, pool, selection, order):
  make_run(tmp_path, target, pool, selection=selection, rounds=1)
  right = np.array([0.49, 0.48, 0.47, 0.9, 0.8, 0.7], np.float32)
  probability = np.stack([right, 1 - right], axis=1)
  probability[3:] = probability[3:, ::-1]
  # Of the wrong ones, 2 is now the least sure.
  probability[[0, 2], :] = probability[[2, 0], :]
  next_q = np.array([4, 4, 4, 4, 4, 9])
  write_round(tmp_path, target, 0, probability, np.ones(6, int), next_q)
  page = Page(pages.write_run(tmp_path, target, pool))
  hardest = page.text[page.text.index('The hardest target images') :]
  assert re.findall(r'target:(\d+)', hardest) == [f'{i:03d}' for i in order]
  assert '3 of the 6 training images are classified wrongly' in hardest
  assert 'taken for dog' in hardest
  assert ('K 9' in hardest) == (selection == 'neighbours')


ANSWERED = 'rounds', 'hardest', 'mistakes'


@pytest.mark.parametrize(
  ('settings', 'there'),
  [
    ({}, {'borrowed', 'gallery', *ANSWERED, 'about'}),
    ({'rounds': 1}, {'borrowed', 'gallery', *ANSWERED, 'about'}),
    ({'rounds': 0}, {'borrowed', 'gallery', 'about'}),
    ({'selection': 'none'}, {*ANSWERED, 'about'}),
    ({'selection': 'random'}, {'borrowed', *ANSWERED, 'about'}),
    ({'selection': 'none', 'rounds': 0}, {'about'}),
  ],
)
def test_what_a_run_did_not_leave_is_left_out(
  tmp_path, target, pool, settings, there
):
  make_run(tmp_path, target, pool, **settings)
  source = None if settings.get('selection') == 'none' else pool
  page = Page(pages.write_run(tmp_path, target, source))
  sections = {a['aria-labelledby'] for a in page.all('section')}
  links = {a['href'][1:] for a in page.all('a')}
  assert sections == links == there
  assert 'nan' not in page.text.lower()


def test_what_a_class_has_in_common_is_shown(tmp_path, target, pool):
  # With K = 3, cats 0, 1, 2 are near 012, 123, 234 and dogs near 345, ...
  make_run(tmp_path, target, pool, selection='labelled', rounds=1)
  page = Page(pages.write_run(tmp_path, target, pool))
  images = [a for a in page.all('img') if ' image, of' in a['alt']]
  # The first of the list, and the third and last.
  assert [_grey(a['src']) for a in images] == [2, 3, 5, 6]
  assert 'near 3 of 3' in page.text
  assert 'near 2 of 3' in page.text
  assert 'nats' not in page.text[page.text.index('by their place') :][:200]
  assert page.row('cat')[0] == 'x (a)\xa0100 %'


def test_chosen_classes_are_shown_by_what_is_near(tmp_path, target, pool):
  make_run(tmp_path, target, pool, selection='classes', rounds=1)
  page = Page(pages.write_run(tmp_path, target, pool))
  # Eight images are near, all of x, which is enough.
  assert 'x (a): 8 of its 40 images are near' in page.text
  images = [a for a in page.all('img') if ' image, of' in a['alt']]
  assert [_grey(a['src']) for a in images] == [2, 3, 4, 5, 1, 6]
  assert 'y (b)' not in page.text
  assert 'Who borrows from whom' not in page.text


def test_distances_of_features_are_no_nats(tmp_path, target, pool):
  make_run(tmp_path, target, pool, selection='features', rounds=1)
  page = Page(pages.write_run(tmp_path, target, pool))
  shown = page.text[page.text.index('features of length 1') :]
  assert '1st · 0.250 x' in shown
  assert 'nats' not in shown[: shown.index('The hardest')]


def test_filters_are_named_by_what_they_add(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  filters = [f'{NASTY} {i}' for i in range(5)]
  pair = {
    'target_id': 'target:001',
    'source_id': 'pool:041',
    'rank': 39,
    'distance': 0.41,
    'usual_distance': 1.62,
    'nats': [0.01, 0.2, 0.15, 0.05, 0.0],
    'usual': [0.8, 0.1, 0.3, 0.4, 0.02],
  }
  value = {'filters': filters, 'layers': [0, 0, 0, 1, 1], 'pairs': [pair]}
  write_json(tmp_path / 'selection' / reasons.NAME, value)
  page = Page(pages.write_run(tmp_path, target, pool))
  assert 'scale' not in page.text
  _, most, least = re.split('Agree most|Agree least', page.text)
  named = re.compile(
    re.escape(NASTY) + r' (\d): ([\d.]+) nats, usually ([\d.]+)'
  )
  assert named.findall(most) == [
    ('0', '0.01', '0.8'),
    ('3', '0.05', '0.4'),
    ('2', '0.15', '0.3'),
  ]
  # Nothing agrees both most and least, and next to nothing is not named.
  assert named.findall(least) == [('1', '0.2', '0.1')]
  assert '40th · 0.410 nats' in page.text
  assert 'a usual source image, 1.62 nats' in page.text
  labels = [a['aria-label'] for a in page.all('svg')]
  assert any('this pair 0.41 in all' in label for label in labels)


def test_an_empty_directory_makes_a_page(tmp_path, target):
  assert Page(pages.write_run(tmp_path, target, None)).all('h1')


def test_same_files_same_bytes(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  first = pages.write_run(tmp_path, target, pool).read_bytes()
  with matplotlib.rc_context({'xtick.direction': 'in', 'svg.fonttype': 'path'}):
    second = pages.write_run(tmp_path, target, pool).read_bytes()
  assert first == second
  assert [p.name for p in (tmp_path / 'report').iterdir()] == ['index.html']


def test_resumed_metrics_draw_the_same_curve(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  metrics = tmp_path / 'metrics.jsonl'
  first = pages.write_run(tmp_path, target, pool).read_bytes()
  lines = metrics.read_text().splitlines(keepends=True)
  # Killed in the middle of a line, resumed three steps earlier.
  killed = [*lines[:7], lines[7][:9] + '\n', *lines[4:]]
  metrics.write_text(''.join(killed))
  assert pages.write_run(tmp_path, target, pool).read_bytes() == first
  metrics.write_text(''.join(lines[:-1]))
  assert pages.write_run(tmp_path, target, pool).read_bytes() != first


def test_an_image_that_cannot_be_read_any_more_is_said_so(
  tmp_path, target, pool
):
  make_run(tmp_path, target, pool, rounds=0, depth=1)
  lost = dataclasses.replace(pool, read=lambda index: b'')
  page = Page(pages.write_run(tmp_path, target, lost))
  assert page.text.count('not readable') == len(target)
  assert len(page.all('img')) == len(target)


def test_images_of_another_data_set_are_refused(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  other = dataset('pool', ('a:x',), [0] * 10, ('a',))
  with pytest.raises(ValueError, match=r'not among the 10 ids of the source'):
    pages.write_run(tmp_path, target, other)


def test_summary_table_of_a_comparison(comparison):
  comparison['arms']['a-5']['title'] = 'selective'
  assert summary.table(comparison, {}).splitlines() == [
    '              Mean class                         Points against',
    'Arm          accuracy, %  Rounds fused, %           target only'
    '        Verdict',
    '-' * 78,
    'target only  55.0 +- 7.1             80.0                     -'
    '              -',
    'selective    70.0 +- 0.0             80.0  +15.0 [+10.0, +20.0]'
    '           gain',
    'random       55.0 +- 7.1             80.0     +0.0 [-1.1, +1.0]'
    '  no gain shown',
    '',
    'Arm          Images of a  Images of b',
    '-' * 37,
    'target only            -            -',
    'selective          1,234            2',
    'random                 5            3',
    '',
    'Seconds: pretrain 12.3, train 1,234.0',
  ]


def test_summary_table_is_one_where_it_fits(comparison):
  comparison['arms']['a-5']['title'] = 'selective'
  for each in comparison['arms'].values():
    each['fused'] = each['mean_class_accuracy']
  lines = summary.table(comparison, {}).splitlines()
  assert len(lines) == 2 + 1 + 3 + 2
  assert max(map(len, lines)) <= 100
  assert lines[4].split()[-3:] == ['gain', '1,234', '2']


def test_summary_table_of_a_run(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  results = json.loads((tmp_path / 'results.json').read_text())
  *_, last, _, seconds = summary.table(results, {}).splitlines()
  assert last.split() == ['1', '71.2', '51.2', '91.2', '4.25', '9']
  assert seconds == 'Seconds: search 1.5, train 1,234.5'


@pytest.mark.parametrize(
  ('interval', 'verdict'),
  [
    ([0.001, 0.2], 'gain'),
    ([0.0, 0.2], 'no gain shown'),
    ([-0.2, 0.2], 'no gain shown'),
    ([-0.2, -0.001], 'loss'),
    (None, 'too few seeds'),
  ],
)
def test_a_gain_is_claimed_only_above_zero(comparison, interval, verdict):
  comparison['arms']['a']['difference_interval'] = interval
  line = summary.table(comparison, {}).splitlines()
  row = next(text for text in line if text.startswith('random'))
  assert f'  {verdict}' in row


# ------------------------------------------------------------ wrong answers


def test_frequent_mistakes_are_named_as_text(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  with open(tmp_path / 'rounds' / '1' / 'confusion.csv', 'w') as file:
    csv.writer(file).writerows(
      [
        ['true class', 'cat', NASTY, 'cow'],
        ['cat', 7, 3, 0],
        [NASTY, 1, 4, 0],
        ['cow', 0, 0, 0],
      ]
    )
  page = Page(pages.write_run(tmp_path, target, pool))
  rows = [c for c in page.cells if 'of' in ' '.join(c[2:3])]
  none = '\N{EN DASH}'
  assert ['cat', NASTY, '3 of 10', '30', '1'] in rows
  assert [NASTY, 'cat', '1 of 5', '20', '3'] in rows
  assert not [row for row in rows if none in row]
  # 70 %, 80 % and a class without test images.
  alt = next(
    a['aria-label'] for a in page.all('svg') if 'diagonal' in a['aria-label']
  )
  assert '75.0 %' in alt


def test_doubt_is_drawn_by_round(run_page):
  labels = [a['aria-label'] for a in run_page.all('svg')]
  entropy = next(label for label in labels if label.startswith('Entropy'))
  assert entropy.endswith('mean: 0.5, 0.5.')


def test_losses_of_arms_are_means_over_the_seeds(comparison_page):
  labels = [a['aria-label'] for a in comparison_page.all('svg')]
  loss = next(label for label in labels if label.startswith('Loss on the'))
  # Five updates of either round, 2 / step.
  assert 'random: 2, 1, 0.667, 0.5, 0.4, 2, 1, 0.667, 0.5, 0.4.' in loss


def test_updates_of_an_arm_begin_after_pretraining(tmp_path):
  rows = [
    {'round': -1, 'step': 1, 'source_loss': 3.0},
    {'round': -1, 'step': 2, 'source_loss': 2.0},
    {'round': 0, 'step': 1, 'target_loss': 1.0},
    {'round': 1, 'step': 1, 'target_loss': 0.5},
  ]
  path = tmp_path / 'metrics.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  points, starts = record.losses(path, pretraining=False)
  assert (points, starts) == ({'target_loss': [(1, 1.0), (2, 0.5)]}, [2])
  points, starts = record.losses(path)
  assert points['target_loss'] == [(3, 1.0), (4, 0.5)]
  assert starts == [3, 4]


def test_what_was_tried_is_listed_and_the_choice_marked():
  tried = [
    {'steps': 1500, 'learning_rate': 0.01, 'mean_class_accuracy': [0.4, 0.5]},
    {'steps': 3000, 'learning_rate': 0.01, 'mean_class_accuracy': [0.4, 0.3]},
  ]
  chosen = {'steps': 1500, 'learning_rate': 0.01}
  table = report_comparison.tuning_table(
    {'a': {'chosen': chosen, 'tried': tried}}, {'a': {'title': 'A'}}
  )
  assert table[1:] == [
    [
      *('A', '0.01', '1,500, the smallest tried', '-', '-', '-', '45.0', '-'),
      'yes, at an end',
    ],
    ['A', '0.01', '3,000', '-', '-', '-', '35.0', '-', '-'],
  ]


# ------------------------------------------------------------- the guard


def with_guard(workdir, target, pool, **changes):
  """A run whose source held two test images, the second with a nasty name."""
  make_run(workdir, target, pool)
  results = json.loads((workdir / 'results.json').read_text())
  results['guard'] = {
    'checked': True,
    'test_images': 9,
    'test_images_exposed': 2,
    'train_images_repeated': 1,
    'target_pairs': 3,
    'target_pairs_across_train_and_test': 0,
    'source_images_withheld': 2,
    'weights_not_checked': ['trunk.npz'],
    'mean_class_accuracy': [0.61234, 0.71234],
    'mean_class_accuracy_without_exposed': [0.5, None],
  } | changes
  write_json(workdir / 'results.json', results)
  pairs = workdir / 'guard' / 'pairs'
  pairs.mkdir(parents=True)
  with open(workdir / 'guard' / 'quarantine.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['source_id', 'target_id', 'tests', 'similarity'])
    writer.writerow(['a:1', 'target:test/1', 'bytes+picture', '0.9876'])
    writer.writerow(['a:2', f'target:test/{NASTY}', 'name', ''])
  with open(workdir / 'guard' / 'target_repeats.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['id', 'repeats_id', 'tests', 'similarity', 'repeated'])
    for i in range(25):
      names = f'target:test/{NASTY}{i}', f'target:train/{NASTY}{i}'
      writer.writerow([*names, 'bytes+picture', '0.9876', i + 1])
  for row in (0, 1):
    (pairs / f'{row:06d}.jpg').write_bytes(b'picture %d' % row)
  return Page(pages.write_run(workdir, target, pool))


def test_withheld_pairs_and_both_accuracies_are_shown(tmp_path, target, pool):
  page = with_guard(tmp_path / 'run', target, pool)
  assert '2 of the 9 test images are in the source' in page.text
  assert 'trunk.npz' in page.text
  assert '3 pairs of images show the same picture, none of them' in page.text
  assert 'by bytes, picture, similarity 0.9876' in page.text
  assert NASTY in page.text
  assert ['0', '61.2', '50.0'] in page.cells
  assert ['1', '71.2', '\N{EN DASH}'] in page.cells
  shown = [i['src'] for i in page.all('img') if i.get('class') == 'pair']
  data = [base64.b64decode(uri.partition(',')[2]) for uri in shown]
  assert data == [b'picture 0', b'picture 1']


def test_repeats_inside_the_target_are_listed(tmp_path, target, pool):
  page = with_guard(tmp_path / 'run', target, pool)
  assert [
    f'target:test/{NASTY}0',
    f'target:train/{NASTY}0',
    'bytes+picture',
    '0.9876',
    '1',
  ] in page.cells
  assert f'target:test/{NASTY}23' in page.text
  assert f'target:test/{NASTY}24' not in page.text


def test_label_suspects_are_shown(tmp_path, target, pool):
  make_run(tmp_path, target, pool)
  results = json.loads((tmp_path / 'results.json').read_text())
  results['label_suspects'] = {'images': 4321, 'suspects': 30}
  write_json(tmp_path / 'results.json', results)
  rows = [
    [f's:{NASTY}{i}', 's:cat', 's:dog', 0.1, 0.9, 1, 8] for i in range(30)
  ]
  with open(tmp_path / suspects.NAME, 'w', newline='') as file:
    csv.writer(file).writerows([suspects.COLUMNS, *rows])
  page = Page(pages.write_run(tmp_path, target, pool))
  assert 'Of the 4,321 selected source images, 30 may have' in page.text
  assert [f's:{NASTY}0', *map(str, rows[0][1:])] in page.cells
  assert f's:{NASTY}23' in page.text
  assert f's:{NASTY}24' not in page.text
  results['label_suspects'] |= {'of_images': 98765}
  write_json(tmp_path / 'results.json', results)
  page = Page(pages.write_run(tmp_path, target, pool))
  assert (
    'Of 4,321 selected source images, drawn at random from 98,765, 30 may'
    in page.text
  )


def test_a_guard_switched_off_is_not_called_clean(tmp_path, target, pool):
  page = with_guard(
    tmp_path / 'run', target, pool, checked=False, test_images_exposed=0
  )
  assert 'Nobody looked' in page.text
  assert 'None of the' not in page.text


def test_what_could_be_compared_by_bytes_alone_is_said(tmp_path, target, pool):
  page = with_guard(
    tmp_path / 'run', target, pool, test_images_without_look=1234
  )
  assert 'Of 1,234 test images only name and bytes could be' in page.text


def test_very_many_classes_have_a_table_of_mistakes_and_no_plot(
  tmp_path, target, pool
):
  make_run(tmp_path, target, pool)
  classes = [f'c{i}' for i in range(401)]
  counts = np.diag(np.full(401, 5))
  counts[7, 9], counts[9, 7] = 2, 1
  with open(tmp_path / 'rounds' / '1' / 'confusion.csv', 'w') as file:
    writer = csv.writer(file)
    writer.writerow(['true class', *classes])
    writer.writerows([n, *row] for n, row in zip(classes, counts, strict=True))
  page = Page(pages.write_run(tmp_path, target, pool))
  assert ['c7', 'c9', '2 of 7', '29', '1'] in page.cells
  assert not any('diagonal' in a['aria-label'] for a in page.all('svg'))


def test_a_mean_without_an_interval_is_said_without_one():
  arms = [
    plots.Dots('few', [0.5], 0.5, np.nan, np.nan),
    plots.Dots('many', [0.5, 0.7], 0.6, 0.4, 0.8),
  ]
  svg = plots.dots('x', 'Difference', 'points', arms, '')['svg']
  assert 'aria-label="Difference in points. few: 0.5. many: 0.6, from' in svg
  assert 'nan' not in svg
