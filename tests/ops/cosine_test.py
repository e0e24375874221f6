import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from sjft_jax.ops import cosine


def _kernel(rng, radius):
  """Any kernel with g(-x, -y) = conj g(x, y)."""
  taps = 2 * radius + 1
  half = rng.normal(size=(taps, taps)) + 1j * rng.normal(size=(taps, taps))
  return half + np.conj(half[::-1, ::-1])


def _convolved(image, kernel):
  """Direct float64 convolution of the mirrored image."""
  extended = np.pad(image.astype(np.float64), len(kernel) // 2, 'symmetric')
  return scipy.signal.convolve(extended, kernel, mode='valid', method='direct')


def test_coefficients_are_scipys_cosine_transform():
  image = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
  expected = scipy.fft.dctn(image.astype(np.float64), type=2)[:7, :5] / 4
  found = cosine.transform(jnp.asarray(image), rows=7, columns=5)
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize('size', [(8, 10), (7, 10), (8, 9), (7, 9)])
@pytest.mark.parametrize('radius', [1, 12])
def test_real_imaginary_and_turned_responses_are_convolutions(size, radius):
  """A noise kernel passes all frequencies and has all four parities."""
  rng = np.random.default_rng(1)
  image = rng.normal(size=size).astype(np.float32)
  kernel = _kernel(rng, radius)
  filter_ = cosine.prepare(kernel, *size, turned=True)
  coefficient = cosine.transform(jnp.asarray(image), *(n + n % 2 for n in size))
  found = cosine.unfold(filter_, cosine.respond(filter_, coefficient))
  plain = _convolved(image, kernel)
  turned = _convolved(image, kernel[:, ::-1])
  expected = np.stack([plain.real, plain.imag, turned.real, turned.imag], -1)
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def test_what_a_kernel_does_not_pass_is_left_out():
  """A smooth bell, even in y, passes few frequencies and two parities."""
  y, x = np.mgrid[-24:25, -24:25]
  bell = np.exp(-(x**2 + y**2) / 2 / 4**2) * np.exp(0.3j * x)
  filter_ = cosine.prepare(bell, 64, 64)
  t, _, fold, k, _ = filter_.table.shape
  assert t == 2
  assert 5 / (2 * np.pi * 4) < fold * k / (2 * 64) < 7 / (2 * np.pi * 4)


def test_by_hand():
  """A difference along x: the neighbour to the left less the one right."""
  kernel = np.array([[0, 0, 0], [-1j, 0, 1j], [0, 0, 0]])
  filter_ = cosine.prepare(kernel, 1, 4)
  image = jnp.array([[1.0, 2, 4, 8]])
  coefficient = cosine.transform(image, 1, 4)
  found = cosine.unfold(filter_, cosine.respond(filter_, coefficient))
  np.testing.assert_allclose(
    found[0], [[0, -1], [0, -3], [0, -6], [0, -4]], atol=1e-5
  )
