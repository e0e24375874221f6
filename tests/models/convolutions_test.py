import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax.models import convolutions


def test_pointwise_convolution_and_its_gradients_in_float64():
  rng = np.random.default_rng(0)
  x, w, g = (rng.normal(size=s) for s in ((2, 3, 4, 5), (5, 7), (2, 3, 4, 7)))
  y, vjp = jax.vjp(
    convolutions.pointwise,
    jnp.asarray(x, jnp.float32),
    jnp.asarray(w, jnp.float32),
  )
  dx, dw = vjp(jnp.asarray(g, jnp.float32))
  for found, expected in (
    (y, np.einsum('nhwi,io->nhwo', x, w)),
    (dx, np.einsum('nhwo,io->nhwi', g, w)),
    (dw, np.einsum('nhwi,nhwo->io', x, g)),
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
