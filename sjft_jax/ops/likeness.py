"""How alike fingerprints of pictures are, whichever way round."""

import functools

import jax
import jax.numpy as jnp


def best_view(even_tvd, odd_tve, even_sd, odd_se):
  """Similarity of every target picture and every source picture.

  A picture's mirror image has the same even part and the negated odd part, so

  L[t, s] = max_v <even[t, v], even[s]> + |<odd[t, v], odd[s]>|

  is the largest similarity of any view of t, or of its mirror image, to s.

  Args:
    even_tvd: even parts of the views of each target, float32 [t, v, d]; even
      and odd part of a view together have length 1.
    odd_tve: their odd parts, float32 [t, v, e].
    even_sd: of the source pictures, float32 [s, d]; zero for none.
    odd_se: likewise, float32 [s, e].

  Returns:
    L, float32 [t, s], -1..1.

  Raises:
    ValueError: if the lengths do not fit.
  """
  if even_tvd.shape[2:] + odd_tve.shape[2:] != (
    even_sd.shape[1:] + odd_se.shape[1:]
  ):
    raise ValueError(
      f'The parts must be equally long: {even_tvd.shape=}, {odd_tve.shape=}, '
      f'{even_sd.shape=}, {odd_se.shape=}.'
    )

  def one_view(best_ts, view):
    even_td, odd_te = view
    # Or what lies near the limit would depend on the device.
    times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    alike_ts = times(even_td, even_sd.T) + jnp.abs(times(odd_te, odd_se.T))
    return jnp.maximum(best_ts, alike_ts), None

  # View by view: all at once, the similarities would be [t, v, s].
  start_ts = jnp.full((len(even_tvd), len(even_sd)), -1, even_tvd.dtype)
  views = (jnp.swapaxes(even_tvd, 0, 1), jnp.swapaxes(odd_tve, 0, 1))
  return jax.lax.scan(one_view, start_ts, views)[0]
