"""Convolutions as the product that CPUs compute fastest."""

import math

import jax
import jax.numpy as jnp


def pointwise(
  x_nhwc: jax.Array, kernel_io: jax.Array, precision=None
) -> jax.Array:
  """A 1 x 1 convolution, as a product of two matrices.

  Of four axes, XLA's CPU backend transposes the cotangent for the kernel's
  gradient, one number at a time.

  Args:
    x_nhwc: floating point [n, h, w, i]; n may be 0.
    kernel_io: [i, o], of the same dtype.
    precision: of the product on accelerators, None for their default.

  Returns:
    Responses, [n, h, w, o].
  """
  *nhw, i = x_nhwc.shape
  y_mo = jnp.matmul(
    x_nhwc.reshape(math.prod(nhw), i), kernel_io, precision=precision
  )
  return y_mo.reshape(*nhw, kernel_io.shape[1])


def convolve(x_nhwc, kernel_hwio, strides, padding, **options):
  """As XLA has it; as one product where the kernel is larger than the map."""
  h, w, i, o = kernel_hwio.shape
  if x_nhwc.shape[1] >= h and x_nhwc.shape[2] >= w:
    return jax.lax.conv_general_dilated(
      x_nhwc, kernel_hwio, strides, padding, **options
    )
  # XLA would exchange map and kernel, for which CPUs have a naive loop only.
  x_nhwc = jnp.pad(x_nhwc, ((0, 0), *padding, (0, 0)))
  rows, columns = (
    range(x_nhwc.shape[axis] - side + 1)[::stride]
    for axis, side, stride in zip((1, 2), (h, w), strides, strict=True)
  )
  windows = [x_nhwc[:, a : a + h, b : b + w] for a in rows for b in columns]
  x_pnk = jnp.stack(windows, axis=1).reshape(-1, h * w * i)
  y_pno = x_pnk @ kernel_hwio.reshape(-1, o)
  return y_pno.reshape(-1, len(rows), len(columns), o)
