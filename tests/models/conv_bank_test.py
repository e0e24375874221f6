import jax
import numpy as np
import pytest

from sjft_jax import errors
from sjft_jax.models import conv_bank

WIDTHS = {'conv1': 6} | {f'fire{i}': 2 + i for i in range(2, 10)}
POOLED = 'conv1', 'fire4', 'fire8'


@pytest.fixture
def arrays():
  """A narrow SqueezeNet: layer -> (squeeze 3, half its width, the rest)."""
  rng = np.random.default_rng(0)
  shapes, incoming = {'conv1': (WIDTHS['conv1'], 3, 7, 7)}, WIDTHS['conv1']
  for name, width in list(WIDTHS.items())[1:]:
    narrow = width // 2
    shapes[f'{name}/conv1x1_1'] = 3, incoming, 1, 1
    shapes[f'{name}/conv1x1_2'] = narrow, 3, 1, 1
    shapes[f'{name}/conv3x3_2'] = width - narrow, 3, 3, 3
    incoming = width
  found = {}
  for name, shape in shapes.items():
    kernel = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    found[f'{name}/W'] = kernel.astype(np.float32)
    found[f'{name}/b'] = rng.normal(size=shape[0]).astype(np.float32)
  return found


@pytest.fixture
def path(tmp_path, arrays):
  np.savez(tmp_path / 'weights.npz', **arrays)
  return str(tmp_path / 'weights.npz')


def _convolve(x_nhwc, kernel_oihw, bias_o, stride=1, padding=0):
  """float64, one tap at a time."""
  margin = (padding, padding)
  x_nhwc = np.pad(x_nhwc, ((0, 0), margin, margin, (0, 0)))
  taps = kernel_oihw.shape[-1]
  rows, columns = (range(0, n - taps + 1, stride) for n in x_nhwc.shape[1:3])
  out = np.zeros((len(x_nhwc), len(rows), len(columns), len(kernel_oihw)))
  for i, y in enumerate(rows):
    for j, x in enumerate(columns):
      window = x_nhwc[:, y : y + taps, x : x + taps]
      out[:, i, j] = np.einsum('nyxi,oiyx->no', window, kernel_oihw) + bias_o
  return out


def _pool(x_nhwc):
  """Windows of 3 from every second pixel; the last may be cut short."""
  starts = [range(0, max(n - 1, 1), 2) for n in x_nhwc.shape[1:3]]
  return np.stack(
    [
      np.stack(
        [x_nhwc[:, y : y + 3, x : x + 3].max((1, 2)) for x in starts[1]], 1
      )
      for y in starts[0]
    ],
    axis=1,
  )


def _network(image, arrays):
  """{layer: response before its ReLU} of the whole network, float64."""
  arrays = {name: x.astype(np.float64) for name, x in arrays.items()}

  def conv(x, name, **settings):
    return _convolve(x, arrays[f'{name}/W'], arrays[f'{name}/b'], **settings)

  x = image.astype(np.float64)
  x = np.stack([x[..., 2] - 104, x[..., 1] - 117, x[..., 0] - 123], axis=-1)
  found = {}
  for name in WIDTHS:
    if name == 'conv1':
      found[name] = conv(x, name, stride=2)
    else:
      x = np.maximum(conv(x, f'{name}/conv1x1_1'), 0)
      both = (
        conv(x, f'{name}/conv1x1_2'),
        conv(x, f'{name}/conv3x3_2', padding=1),
      )
      found[name] = np.concatenate(both, axis=-1)
    x = np.maximum(found[name], 0)
    x = _pool(x) if name in POOLED else x
  return found


@pytest.mark.parametrize('activation', ['before', 'after'])
def test_responses_equal_a_float64_network(path, arrays, activation):
  image = np.random.default_rng(1).integers(0, 256, (2, 45, 52, 3), np.uint8)
  layers = 'fire9', 'conv1', 'fire4', 'fire5'
  responses, layer_c = conv_bank.load(path, layers, activation)
  expected = _network(image, arrays)
  found = jax.jit(responses)(image)
  for name, response in zip(
    ('conv1', 'fire4', 'fire5', 'fire9'), found, strict=True
  ):
    reference = expected[name]
    if activation == 'after':
      reference = np.maximum(reference, 0)
    np.testing.assert_allclose(
      response, reference, rtol=0, atol=1e-5 * np.abs(reference).max()
    )
  np.testing.assert_array_equal(layer_c, np.repeat([0, 1, 2, 3], [6, 6, 7, 11]))


def test_an_image_alone_responds_as_in_a_batch(path):
  image = np.random.default_rng(2).integers(0, 256, (5, 45, 45, 3), np.uint8)
  responses, _ = conv_bank.load(path, ('conv1', 'fire9'))
  for together, alone in zip(
    responses(image), responses(image[3:4]), strict=True
  ):
    np.testing.assert_array_equal(alone[0], together[3])


@pytest.mark.parametrize(
  ('size', 'sizes'),
  [
    (224, [109, 54, 54, 54, 27, 27, 27, 27, 13]),
    (64, [29, 14, 14, 14, 7, 7, 7, 7, 3]),
  ],
)
def test_maps_have_the_sizes_of_caffe(path, size, sizes):
  responses, _ = conv_bank.load(path, tuple(WIDTHS))
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  shapes = [r.shape[1:3] for r in jax.eval_shape(responses, image)]
  assert shapes == [(n, n) for n in sizes]


def test_only_the_layers_needed_are_read(tmp_path, arrays):
  first = {name: x for name, x in arrays.items() if name.startswith('conv1')}
  np.savez(tmp_path / 'first.npz', **first)
  responses, layer_c = conv_bank.load(str(tmp_path / 'first.npz'))
  assert len(responses(np.zeros((1, 9, 9, 3), np.uint8))) == 1
  np.testing.assert_array_equal(layer_c, np.zeros(6))
  with pytest.raises(errors.UserError, match='lack fire2/conv1x1_1/W, '):
    conv_bank.load(str(tmp_path / 'first.npz'), ('fire2',))


def test_bad_files_get_one_line(tmp_path, arrays):
  def refused(name, match):
    with pytest.raises(errors.UserError, match=match) as caught:
      conv_bank.load(str(tmp_path / name))
    assert '\n' not in str(caught.value)

  refused('absent.npz', 'No such file')
  refused('', 'directory')
  (tmp_path / 'empty.npz').write_bytes(b'')
  refused('empty.npz', 'plain arrays')
  (tmp_path / 'text.npz').write_text('weights')
  refused('text.npz', 'plain arrays')
  np.save(tmp_path / 'one.npy', np.zeros(3))
  refused('one.npy', 'plain arrays')
  np.savez(tmp_path / 'object.npz', **{'conv1/W': np.array([{}]), 'conv1/b': 0})
  refused('object.npz', 'plain arrays')
  np.savez(tmp_path / 'flat.npz', **arrays | {'conv1/b': np.zeros(5)})
  refused('flat.npz', r'conv1/b \[o\], got \(6, 3, 7, 7\) and \(5,\)')
  np.savez(tmp_path / 'grey.npz', **arrays | {'conv1/W': np.ones((6, 1, 7, 7))})
  refused('grey.npz', 'do not fit together')


def test_bad_settings_get_one_line(path):
  with pytest.raises(errors.UserError, match='fire9, got fire10'):
    conv_bank.load(path, ('fire10',))
  with pytest.raises(errors.UserError, match='got none'):
    conv_bank.load(path, ())
  with pytest.raises(errors.UserError, match="'before' or 'after', got 'relu'"):
    conv_bank.load(path, activation='relu')


@pytest.mark.parametrize('size', [5, 8])
def test_small_images_get_one_line(path, size):
  responses, _ = conv_bank.load(path, ('fire2',))
  with pytest.raises(errors.UserError, match='needs larger images'):
    responses(np.zeros((1, size, size, 3), np.uint8))
