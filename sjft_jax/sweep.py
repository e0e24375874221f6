"""Every arm with every seed: python -m sjft_jax.sweep --config=FILE ...

  python -m sjft_jax.sweep --config=configs/sweeps/NAME.py --workdir=DIR

The same command again goes on where it was stopped: finished runs are not done
again. What `main` does with a config that has arms; one without is refused.
"""

import sys

from absl import app, flags

from sjft_jax import main
from sjft_jax.errors import UserError


def _accept(c):
  if not c.arms:
    raise UserError(
      'A sweep needs a config with arms, as those in configs/sweeps; this one '
      'has none: python -m sjft_jax.main makes one run of it.'
    )


if __name__ == '__main__':
  app.define_help_flags()
  flags.adopt_module_key_flags(main)  # for --help
  sys.exit(main.run(sys.argv, _accept))
