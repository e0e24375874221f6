"""Frozen convolutions of a pretrained network as a filter bank.

The weight file says which network it holds and what input that wants. Another
network is a row in `NETWORKS`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from sjft_jax.errors import UserError
from sjft_jax.models import alexnet, squeezenet, weight_files
from sjft_jax.models.convention import Convention
from sjft_jax.models.frozen import Network
from sjft_jax.ops import groups

NETWORKS = {
  'alexnet_caffe': alexnet.CAFFE,
  'alexnet_torchvision': alexnet.TORCHVISION,
  'squeezenet_v1_0': squeezenet.V1_0,
}

_PREFIX = weight_files.TRUNK[0]
_PARTS = 'kernel', 'bias'


def tensor_shapes(network: Network) -> dict[str, tuple[int, ...]]:
  """{tensor: shape} of a network as they stand in a weight file."""
  return {
    f'{_PREFIX}{name}/{part}': shape
    for name, shapes in network.shapes().items()
    for part, shape in zip(_PARTS, shapes, strict=True)
  }


def load(
  path: str,
  layers: Sequence[str] = (),
  activation: str = 'after',
  networks: Mapping[str, Network] = NETWORKS,
) -> tuple[Callable, tuple[str, ...], Convention]:
  """Reads a network's weights and makes a filter bank of some of its layers.

  Args:
    path: a file written by `sjft_jax.convert`.
    layers: names of the layers that respond; none for the network's default,
      conv1 and conv2 of AlexNet.
    activation: 'before' or 'after' the layer's ReLU.
    networks: the networks that the file may hold.

  Returns:
    The function uint8 RGB [n, h, w, 3] -> list of float32 [n, h', w', c], one
    per layer in the network's order, a pytree that may be passed into jit. To
    the bit, an image's responses do not depend on what else is in the batch,
    nor on its size. The names of those layers. And the input that the weights
    want, which the function makes of the bytes; what remains is to resize and
    to crop.

  Raises:
    UserError: if the file, a layer or an array is missing or unfit, or (from
      the function) the images are too small for the network.

  Source: Ge & Yu, CVPR 2017, section 3.2.1: after the nonlinearity; the
  release: before it.
  """
  if activation not in ('before', 'after'):
    raise UserError(
      f"A conv bank needs activation 'before' or 'after', got {activation!r}."
    )
  weights = weight_files.read(path)
  if weights.network not in networks:
    raise UserError(
      f'A conv bank needs weights of {", ".join(networks)}; those in {path} '
      f'are of {weights.network}.'
    )
  whole = networks[weights.network]
  layers = tuple(layers) or whole.default
  if unknown := [name for name in layers if name not in whole.names]:
    raise UserError(
      f'The layers of {weights.network} are {", ".join(whole.names)}; '
      f'got {", ".join(unknown)}.'
    )
  network = whole.upto(layers)
  wanted, known = tensor_shapes(network), tensor_shapes(whole)
  trunk = {
    name: value
    for name, value in weights.tensors.items()
    if not name.startswith(weight_files.HEAD)
  }
  if misfits := weight_files.misfits(trunk, wanted, known):
    raise UserError(
      f'The weights in {path} are no {weights.network}: {"; ".join(misfits)}.'
    )
  arrays = {
    name: tuple(
      jnp.asarray(trunk[f'{_PREFIX}{name}/{part}'], jnp.float32)
      for part in _PARTS
    )
    for name in network.shapes()
  }
  responses = _Responses(
    network,
    frozenset(layers),
    activation == 'before',
    weights.convention,
  )
  chosen = tuple(name for name in network.names if name in layers)
  function = jax.tree_util.Partial(responses, arrays)
  return function, chosen, weights.convention


@dataclasses.dataclass(frozen=True)
class _Responses:
  """The bank's function of (arrays, images); equal banks compile once."""

  network: Network
  chosen: frozenset[str]
  before: bool
  convention: Convention

  def __call__(self, arrays, image_nhwc):
    respond = functools.partial(self._respond, arrays)
    one = jax.ShapeDtypeStruct((1, *image_nhwc.shape[1:]), image_nhwc.dtype)
    shapes = [r.shape[1:] for r in jax.eval_shape(respond, one)]
    return groups.over(respond, image_nhwc, groups.size(shapes))

  def _respond(self, arrays, image_nhwc):
    found = self.network.responses(self.convention(image_nhwc), arrays)
    return [
      before if self.before else after
      for name, before, after in found
      if name in self.chosen
    ]
