import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.ops import gabor

FREQUENCIES = 0.05, 0.1, 0.2, 0.4  # Cycles per pixel.
EVERYWHERE = 1, 1, 1, 1


def _direct(grey_hw, kernels, step):
  """float64 sums over the taps at every step-th pixel, [h, w, channels]."""
  channels = []
  for kernel_oyx in kernels:
    taps = kernel_oyx.shape[-1]
    extended = np.pad(grey_hw.astype(np.float64), taps // 2, 'symmetric')
    window = np.lib.stride_tricks.sliding_window_view(extended, (taps, taps))
    flipped = kernel_oyx[:, ::-1, ::-1]
    response = np.einsum(
      'hwyx,oyx->hwo', window[::step, ::step], flipped, optimize=True
    )
    for o in range(len(kernel_oyx)):
      channels += [response[..., o].real, response[..., o].imag]
  return np.stack(channels, axis=-1)


def test_kernels_follow_the_published_formulas():
  """With a = 2 and 6 orientations the sigmas have a short closed form."""
  kernels = gabor.bank()
  taps = [k.shape for k in kernels]
  assert taps == [(6, 181, 181), (6, 91, 91), (6, 47, 47), (6, 25, 25)]
  for kernel_oyx, u in zip(kernels, FREQUENCIES, strict=True):
    sx = 3 * np.sqrt(2 * np.log(2)) / (2 * np.pi * u)
    sy = 3 * np.sqrt(np.log(2)) / (4 * np.pi * u * np.tan(np.pi / 12))
    radius = kernel_oyx.shape[1] // 2
    for n, kernel_yx in enumerate(kernel_oyx):
      bell = np.empty(kernel_yx.shape)
      wave = np.empty(kernel_yx.shape, complex)
      for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
          turned = (x + 1j * y) * np.exp(-1j * np.pi * n / 6)
          at = y + radius, x + radius
          bell[at] = np.exp(
            -((turned.real / sx) ** 2 + (turned.imag / sy) ** 2) / 2
          )
          wave[at] = np.exp(2j * np.pi * u * turned.real)
      mean = (bell * wave.real).sum() / bell.sum()
      expected = bell * (wave - mean) * 0.4 / u / (2 * np.pi * sx * sy)
      np.testing.assert_allclose(
        kernel_yx, expected, rtol=0, atol=1e-6 * np.abs(expected).max()
      )


def test_own_grating_excites_a_kernel_above_all_others():
  y, x = np.mgrid[:96, :96]
  turn_o = np.pi * np.arange(6)[:, None, None] / 6
  along_ohw = x * np.cos(turn_o) + y * np.sin(turn_o)
  gratings = [np.cos(2 * np.pi * u * along_ohw) for u in FREQUENCIES]
  kernels = gabor.bank()
  responses = gabor.responses(
    jnp.asarray(np.concatenate(gratings), jnp.float32),
    gabor.prepare(kernels, 96, 96, EVERYWHERE),
  )
  response = np.concatenate(responses, axis=-1, dtype=np.float64)
  energy = np.square(response).mean((1, 2))
  # Kernels of a scale weigh the same; a scale's weight is its envelope's.
  weight = np.repeat([np.abs(k).sum((1, 2)).mean() for k in kernels], 6)
  strength = energy.reshape(24, 24, 2).sum(-1) / weight**2
  np.testing.assert_array_equal(strength.argmax(1), np.arange(24))


@pytest.mark.parametrize('shape', [(16, 24), (150, 121), (20, 130)])
def test_responses_equal_direct_convolution(shape):
  """Small images meet kernels that reach over several mirrored copies."""
  kernels = gabor.bank()
  filters = gabor.prepare(kernels, *shape, EVERYWHERE)
  grey = np.random.default_rng(0).uniform(0, 255, (2, *shape))
  grey = grey.astype(np.float32)
  found = gabor.responses(jnp.asarray(grey), filters)
  found = np.concatenate(found, axis=-1)
  step = 1 if shape[1] < 30 else 13
  for image, response in zip(grey, found, strict=True):
    expected = _direct(image, kernels, step)
    error = np.abs(response[::step, ::step] - expected).max((0, 1))
    assert (error < 1e-5 * np.abs(expected).max((0, 1))).all()


def test_fewer_points_are_points_of_the_same_response():
  """Odd spacings fall on the middle of every third or fifth pixel."""
  kernels = gabor.bank()
  grey = np.random.default_rng(0).uniform(0, 255, (1, 45, 30))
  grey = jnp.asarray(grey, jnp.float32)
  full = gabor.responses(grey, gabor.prepare(kernels, 45, 30, EVERYWHERE))
  spacings = 5, 3, 1, 1
  fewer = gabor.responses(grey, gabor.prepare(kernels, 45, 30, spacings))
  for scale, spacing in enumerate(spacings):
    at = slice(spacing // 2, None, spacing)
    expected = np.asarray(full[scale][:, at, at])
    np.testing.assert_allclose(
      fewer[scale], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_flat_image_gives_no_response():
  responses, _ = gabor.make_responses(40)
  image = np.full((1, 40, 40, 3), 255, np.uint8)
  assert not any(np.any(r) for r in responses(image))


@pytest.mark.parametrize('decimate', [False, True])
def test_the_maps_hold_every_point_once_under_the_names(decimate):
  responses, names = gabor.make_responses(20, decimate)
  image = np.random.default_rng(2).integers(0, 256, (1, 20, 20, 3), np.uint8)
  folded = [m.reshape(-1, m.shape[-1]).T for m in responses(image)]
  values = dict(zip(names, (v for m in folded for v in m), strict=True))
  grey = gabor.luma(jnp.asarray(image))
  spacings = (4, 2, 1, 1) if decimate else EVERYWHERE
  scales = gabor.responses(
    grey - grey[0, 0, 0], gabor.prepare(gabor.bank(), 20, 20, spacings)
  )
  for scale, response in enumerate(scales, 1):
    for channel in range(12):
      degrees, part = channel // 2 * 30, ('real', 'imaginary')[channel % 2]
      np.testing.assert_array_equal(
        np.sort(values[f'scale {scale}, {degrees} degrees, {part}']),
        np.sort(response[0, ..., channel].ravel()),
      )


def test_grey_is_bt601_in_the_range_of_bytes():
  pixels = np.array([[255, 255, 255], [100, 0, 0], [0, 100, 0], [0, 0, 100]])
  grey = gabor.luma(jnp.asarray(pixels.astype(np.uint8)[None, None]))
  np.testing.assert_allclose(grey[0, 0], [255, 29.9, 58.7, 11.4], rtol=2e-4)


def test_an_image_alone_responds_as_in_a_batch_over_devices():
  responses, names = gabor.make_responses(24)
  image = np.random.default_rng(1).integers(0, 256, (16, 24, 24, 3), np.uint8)
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((8,), ('data',), axis_types=(auto,))
  data = jax.sharding.PartitionSpec('data')
  sharded = jax.jit(
    jax.shard_map(responses, mesh=mesh, in_specs=data, out_specs=data)
  )
  together = jax.jit(responses)(image)
  assert sum(m.shape[-1] for m in together) == len(names) == 48
  assert all(m.shape[:3] == (16, 24, 24) for m in together)
  jax.tree.map(np.testing.assert_array_equal, sharded(image), together)
  for i in (0, 9):
    alone = jax.jit(responses)(image[i : i + 1])
    for one, many in zip(alone, together, strict=True):
      np.testing.assert_array_equal(one[0], many[i])


def test_impossible_banks_are_refused():
  for setting in ({'scales': 1}, {'low': 0.5}, {'high': 0.6}):
    with pytest.raises(ValueError, match='A bank needs'):
      gabor.bank(**setting)
