"""Blobs of a .caffemodel file.

The message types are the parts of Caffe's that hold weights; the numbers of
their fields are those of caffe.proto.
"""

import functools
import math

import numpy as np
from google.protobuf import (
  descriptor_pb2,
  descriptor_pool,
  message,
  message_factory,
)

from sjft_jax import files
from sjft_jax.errors import UserError

_Field = descriptor_pb2.FieldDescriptorProto
_EPSILON = 1e-5

# Message -> field -> (number, type, repeated). Packed numbers are declared as
# bytes, which they are in the file, so that they are never made Python floats.
_MESSAGES = {
  'Blob': {
    'num': (1, 'int64', False),
    'channels': (2, 'int64', False),
    'height': (3, 'int64', False),
    'width': (4, 'int64', False),
    'data': (5, 'bytes', False),
    'shape': (7, 'Shape', False),
    'double_data': (8, 'bytes', False),
  },
  'Shape': {'dim': (1, 'int64', True)},
  'BatchNorm': {'eps': (3, 'float', False)},
  'Layer': {
    'name': (1, 'string', False),
    'blobs': (7, 'Blob', True),
    'batch_norm_param': (139, 'BatchNorm', False),
  },
  'OldLayer': {'name': (4, 'string', False), 'blobs': (6, 'Blob', True)},
  'Net': {
    'name': (1, 'string', False),
    'layers': (2, 'OldLayer', True),
    'layer': (100, 'Layer', True),
  },
}


def read(path: str) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the blobs of a network.

  Args:
    path: a .caffemodel file, of old or of new layers.

  Returns:
    The network's name, and {layer/position: array}: conv1/0 is the kernel,
    conv1/1 the bias.

  Raises:
    UserError: if it is no such file or is cut short, or if a batch
      normalisation has another epsilon than 1e-5.
  """
  data = files.read_bytes(path)
  try:
    network = _net().FromString(data)
    found = {}
    for layer in (*network.layer, *network.layers):
      for i, blob in enumerate(layer.blobs):
        found[f'{layer.name}/{i}'] = _array(blob, layer.name)
    _check_epsilons(network)
  except (message.DecodeError, MemoryError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{path} is no .caffemodel file, or a part of one: {reason}.'
    ) from error
  if not found:
    raise UserError(f'{path} is no .caffemodel file: no layer has weights.')
  return network.name, found


def _array(blob, name):
  if blob.HasField('shape'):
    shape = tuple(blob.shape.dim)
  else:
    shape = blob.num, blob.channels, blob.height, blob.width
  dtype, data = '<f4', blob.data
  if blob.double_data:
    dtype, data = '<f8', blob.double_data
  if min(shape, default=0) < 0 or math.prod(shape) * int(dtype[-1]) != len(
    data
  ):
    raise ValueError(f'layer {name!r} has {len(data)} bytes for {list(shape)}')
  return np.frombuffer(data, dtype).reshape(shape)


def _check_epsilons(network):
  for layer in network.layer:
    given = layer.batch_norm_param
    if given.HasField('eps') and not math.isclose(
      given.eps, _EPSILON, rel_tol=1e-5
    ):
      raise ValueError(
        f'layer {layer.name!r} has eps {given.eps:g}, not {_EPSILON:g}'
      )


@functools.cache
def _net():
  """The class of the outermost message."""
  file = descriptor_pb2.FileDescriptorProto(
    name='sjft_jax/caffe_weights.proto', package='sjft_jax', syntax='proto2'
  )
  for name, fields in _MESSAGES.items():
    described = file.message_type.add(name=name)
    for field, (number, kind, repeated) in fields.items():
      added = described.field.add(name=field, number=number)
      added.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
      if kind in _MESSAGES:
        added.type, added.type_name = _Field.TYPE_MESSAGE, f'.sjft_jax.{kind}'
      else:
        added.type = getattr(_Field, f'TYPE_{kind.upper()}')
      # As Caffe writes them.
      added.options.packed = repeated and kind == 'int64'
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName('sjft_jax.Net')
  )
