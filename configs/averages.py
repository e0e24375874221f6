"""Whose images enter batch norm's running averages, on the demo's images.

  python -m sjft_jax.main --config=configs/averages.py --workdir=DIR

Three seeds of selective joint fine-tuning, five rounds each. The arms train
alike in the first round, to the bit: only what stands for the batch statistics
afterwards differs, and with it what is hard and gets more neighbours later.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config():
  c = demo.get_config()
  c.seeds = 3
  c.arms = ConfigDict(
    {
      averages: dict(
        title=f'Averages of {averages}', set=dict(model=dict(averages=averages))
      )
      for averages in ('both', 'source', 'target')
    }
  )
  return c
