"""What the page of one run shows, out of what the run left."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from sjft_jax import round_files, selection, suspects, tables
from sjft_jax.data import bad_images
from sjft_jax.report import (
  galleries,
  lending,
  mistakes,
  near,
  plots,
  record,
  wording,
)


def context(workdir, target, source) -> dict:
  """What the page of a run shows."""
  results = record.read(workdir / 'results.json')
  data = record.read(workdir / 'data.json')
  config = record.read(workdir / 'config.json')
  settings = config.get('settings', {})
  rounds = results.get('rounds', [])
  lent = rounds[-1] if rounds else results.get('selection', {})
  folders = round_files.directories(workdir)
  budgets = [
    round_files.budget(folder, target)
    for folder in filter(round_files.finished, folders)
  ]
  certificate = record.read(workdir / 'selection' / 'certificate.json')
  shown = {
    'name': workdir.name,
    'target': data.get('target'),
    'rounds': wording.typeset_table(round_table(rounds, settings)),
    'plots': list(
      filter(None, _run_plots(workdir, results, settings, budgets))
    ),
    'classes': [],
    'lending': [],
    'rule': '',
    'gallery': [],
    'near': None,
    'hardest': None,
    'mistakes': mistakes.context(folders[-1]) if folders else None,
    'seconds': record.seconds(results),
    'settings': list(record.flat(config)),
    'certificate': list(record.flat(certificate)),
    'bad': list(bad_images.read(workdir / 'bad_images.csv').items()),
    'guard': galleries.withheld(workdir, results),
    'suspects': suspects.shown(workdir, results),
  }
  pairs = workdir / 'selection' / 'neighbours.parquet'
  # Random images and the whole source have nothing to be shown by.
  if settings.get('selection') in galleries.GALLERIES and pairs.exists():
    c = ConfigDict(settings)
    k_q = np.full(len(target), c.budget.initial)
    k_q = budgets[-1][0] if budgets else k_q
    table = tables.read(pairs, target.ids, source.ids)
    found, drawn = selection.again(
      c, workdir, target, source, table.index_qk, k_q
    )
    counts, borrowing = lending.borrowing(drawn, target, source)
    lent = counts | lent
    near_q = selection.neighbours(found, k_q)
    shown |= borrowing | {
      'rule': c.selection,
      'gallery': galleries.GALLERIES[c.selection](
        table, drawn, near_q, target, source
      ),
      'near': near.context(workdir / 'selection', target, source),
    }
  shown['facts'] = _facts(results, data, lent)
  shown['sources'] = wording.typeset_table(lending.source_table(lent, data))
  answered = list(filter(round_files.answered, folders))
  if answered:
    # K says nothing of a run that borrows nothing.
    grows = budgets and record.borrowed(lent) and selection.uses_k(settings)
    next_k_q = budgets[-1][1] if grows else np.zeros(len(target), int)
    shown['hardest'] = galleries.hardest(answered[-1], next_k_q, target)
  return shown


def _facts(results, data, lent) -> list[tuple[str, str]]:
  """The headline numbers: (value, label)."""
  rounds, facts = results.get('rounds', []), []
  if 'mean_class_accuracy' in results:
    rest = f' after {len(rounds)} rounds' if len(rounds) > 1 else ''
    value = wording.percent(results['mean_class_accuracy'])
    facts.append((f'{value} %', f'mean class accuracy{rest}'))
  if results.get('fused') and len(rounds) > 1:
    value = wording.percent(results['fused']['mean_class_accuracy'])
    facts.append((f'{value} %', 'mean class accuracy, rounds fused'))
  if results.get('weight_fused') and len(rounds) > 1:
    value = wording.percent(results['weight_fused']['mean_class_accuracy'])
    label = 'mean class accuracy, weights of the rounds averaged'
    facts.append((f'{value} %', label))
  if results.get('distilled'):
    value = wording.percent(results['distilled']['mean_class_accuracy'])
    facts.append((f'{value} %', 'mean class accuracy, distilled into one'))
  if results.get('settled'):
    trained = f'{len(rounds)} round{"" if len(rounds) == 1 else "s"}'
    facts.append((trained, results['settled']))
  if 'target' in data:
    classes = len(data['target']['classes'])
    label = f'labelled target images of {classes} classes'
    facts.append((wording.count(data['target']['train']), label))
  if borrowed := record.borrowed(lent):
    label = 'source images borrowed'
    if 'source' in data:
      label += f' of {wording.count(sum(data["source"]["images"].values()))}'
    facts.append((wording.count(borrowed), label))
  return facts


def round_table(rounds, settings) -> list[list[str]]:
  """Head and rows of the table of rounds, in plain ASCII.

  Args:
    rounds: of results.json.
    settings: of config.json; K is left out where it decides nothing.
  """
  accuracies = ('mean_class_accuracy', 'accuracy', 'train_accuracy')
  head = ['Round', 'Mean class accuracy, %', 'Accuracy, %']
  rows = [[*head, 'Training accuracy, %', 'Mean K', 'Images borrowed']]
  for r in rounds:
    borrowed = record.borrowed(r)
    k = borrowed and selection.uses_k(settings) and r.get('mean_k')
    rows.append(
      [
        str(r['round']),
        *(wording.percent(r.get(name)) for name in accuracies),
        wording.short(k) if k else '-',
        wording.count(borrowed),
      ]
    )
  return rows


def _run_plots(workdir, results, settings, budgets) -> Iterator[dict | None]:
  """Accuracy, K and entropy over the rounds; losses over the updates."""
  k_mq = entropy_mq = None
  if budgets:
    k_mq, _, entropy_mq = map(np.stack, zip(*budgets, strict=True))
  rounds = results.get('rounds', [])
  images = settings.get('budget', {}).get('images')
  # K says nothing of a run that borrows nothing, or all there is.
  lent = rounds and record.borrowed(rounds[-1])
  if not (lent and selection.uses_k(settings)):
    k_mq = None
  x = [r['round'] for r in rounds]

  def percent(name):
    return [record.number(r.get(name)) * 100 for r in rounds]

  lines = [
    plots.Line('test, mean over classes', x, percent('mean_class_accuracy')),
    plots.Line('training', x, percent('train_accuracy')),
  ]
  if results.get('fused') and len(x) > 1:
    fused = 100 * results['fused']['mean_class_accuracy']
    lines.append(
      plots.Line('test, rounds fused', [x[0], x[-1]], [fused, fused])
    )
  yield plots.curves('accuracy', 'Accuracy', 'round', 'per cent', lines)

  note = 'Mean over the target images; band: 10th to 90th percentile.'
  title_k, of_k = 'K, the neighbours a target image draws from', ''
  if images:
    title_k, of_k = 'K, by which target images share', plots.PROPORTION
  for name, title, unit, value_mq, more in (
    ('k', title_k, 'neighbours', k_mq, of_k),
    (
      'entropy',
      'Entropy, the doubt about training images',
      'nats',
      entropy_mq,
      '',
    ),
  ):
    if value_mq is not None and np.isfinite(value_mq).all():
      low, high = np.percentile(value_mq, [10, 90], axis=1)
      mean = value_mq.mean(axis=1)
      line = plots.Line('mean', range(len(mean)), mean, low, high)
      plot = plots.curves(name, title, 'round', unit, [line], note=note + more)
      if plot and name == 'k':
        # So many images of whole classes are drawn at any K.
        fixed = images and settings.get('selection') == 'classes'
        plot['grows'] = mean[-1] > mean[0] and not fixed
      yield plot

  yield _loss_curves(workdir / 'metrics.jsonl')


def _loss_curves(path) -> dict | None:
  points, starts = record.losses(path)
  lines = [
    plots.Line(name.replace('_', ' '), *plots.thin(xy, 120))
    for name, xy in points.items()
  ]
  return plots.curves('loss', 'Loss', 'updates', 'nats', lines, starts)
