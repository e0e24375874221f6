"""Ready histograms, where a test needs no images."""

import numpy as np

from sjft_jax import describe, streams


class Describer:
  """What the search needs to know of a describer."""

  def __init__(self, bins, pixels, channels):
    d = bins * channels
    self.pixels_d = np.full(d, float(pixels))
    self.weight_d = np.full(d, 1 / channels)

  fractions = describe.Describer.fractions
  logs = describe.Describer.logs
  log_error = describe.Describer.log_error


class Stream(streams.Described):
  """A stream of ready counts, int32 [n, d]."""

  def __init__(self, describer, counts_nd, stop_after=np.inf):
    self.describer, self.counts_nd = describer, counts_nd
    self.read, self.stop_after = 0, stop_after  # images

  def __len__(self):
    return len(self.counts_nd)

  def blocks(self, start, stop, rows):
    for at in range(start, stop, rows):
      part = self.counts_nd[at : min(at + rows, stop)]
      self.read += len(part)
      if self.read > self.stop_after:
        raise KeyboardInterrupt
      # A row without pixels stands for an image that cannot be decoded.
      good = part.sum(axis=1) > 0
      yield describe.Block(
        index_n=at + np.flatnonzero(good),
        counts_nd=part[good],
        stop=at + len(part),
        bad=[(at + i, 'bad') for i in np.flatnonzero(~good)],
      )


def counts(rng, n, channels=3, bins=8, pixels=60):
  mass = rng.dirichlet(np.full(bins, 0.4), (n, channels))
  draw = [[rng.multinomial(pixels, m) for m in row] for row in mass]
  return np.array(draw, np.int32).reshape(n, channels * bins)
