"""Does borrowing help your own images? Two plain arms and the method.

  python -m sjft_jax.sweep --config=configs/sweeps/folders.py --workdir=DIR \
      --config.target.train=DIR --config.source.main.dir=DIR \
      --config.target.held_out=0.2

Five seeds of each arm of configs/folders.py; several sources are named after a
colon, as there. With target.held_out, or target.per_class, every seed is a draw
of its own; with --config.target.test=DIR and neither of them, seeds differ by
first weights and batches alone. Copy this file for other arms.
"""

from ml_collections import ConfigDict

from configs import folders


def get_config(sources='main'):
  c = folders.get_config(sources)
  c.seeds = 5
  c.optim.schedule = 'cosine'  # fits train.steps, whatever that is
  arms = dict(
    fine_tuning=dict(title='Fine-tuning', set=dict(selection='none')),
    l2_sp=dict(
      title='L2-SP',
      set=dict(selection='none', optim=dict(to_start=True, weight_decay=0.01)),
    ),
    selective=dict(title='Selective joint fine-tuning'),
    fusion=dict(
      title='The same, rounds fused', average=('selective',), all_rounds=True
    ),
  )
  c.arms, c.order = ConfigDict(arms), tuple(arms)
  return c
