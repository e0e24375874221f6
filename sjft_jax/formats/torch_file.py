"""Tensors of a file that torch.save wrote, or of a safetensors file.

Nothing is unpickled: the few instructions with which torch describes a
dictionary of tensors are read one by one; any other ends the reading.
"""

import dataclasses
import io
import math
import pickletools
import struct
import zipfile

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode_safetensors

from sjft_jax import files
from sjft_jax.errors import UserError

_STORAGES = {
  'torch.DoubleStorage': np.float64,
  'torch.FloatStorage': np.float32,
  'torch.HalfStorage': np.float16,
  'torch.BFloat16Storage': ml_dtypes.bfloat16,
  'torch.LongStorage': np.int64,
  'torch.IntStorage': np.int32,
  'torch.ShortStorage': np.int16,
  'torch.CharStorage': np.int8,
  'torch.ByteStorage': np.uint8,
  'torch.BoolStorage': np.bool_,
}
_DICT = 'collections.OrderedDict'
_TENSOR = 'torch._utils._rebuild_tensor_v2'
_PARAMETER = 'torch._utils._rebuild_parameter'
_NAMES = frozenset((_DICT, _TENSOR, _PARAMETER, *_STORAGES))

_MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch before 1.6


class _NotWeightsError(Exception):
  """What is wrong with the file."""


def read(path: str) -> dict[str, np.ndarray]:
  """Reads a state dictionary.

  Args:
    path: a .pth file, old or new, that holds {name: tensor}, alone or as
      'state_dict' or 'model' of a checkpoint; or a .safetensors file.

  Returns:
    {name: array}.

  Raises:
    UserError: if it is no such file, is cut short, or names anything but
      tensors and their storages.
  """
  data = files.read_bytes(path)
  try:
    if zipfile.is_zipfile(io.BytesIO(data)):
      value, storages = _read_zip(data)
    elif data[8:9] == b'{':
      return decode_safetensors(data)
    else:
      value, storages = _read_old(data)
    for key in ('state_dict', 'model'):
      if isinstance(value, dict) and isinstance(value.get(key), dict):
        value = value[key]
    if not isinstance(value, dict):
      raise _NotWeightsError('it holds no dictionary of tensors')
    found = {
      name: item.array(storages)
      for name, item in value.items()
      if isinstance(item, _Tensor) and isinstance(name, str)
    }
    if not found:
      raise _NotWeightsError('it holds no tensors')
    return found
  except _NotWeightsError as error:
    raise UserError(f'{path} is no file of torch weights: {error}.') from error
  except (
    SafetensorError,
    # What the readers of zip files and of instructions say of a torn file.
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f'{path} is no file of torch weights, or a part of one.'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Where the numbers of a tensor lie: a key into {key: bytes}."""

  kind: str
  key: str
  length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage, in elements."""

  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self, storages):
    """The numbers, copied."""
    dtype = np.dtype(_STORAGES[self.storage.kind])
    flat = np.frombuffer(storages[self.storage.key], dtype)
    if len(flat) != self.storage.length:
      raise _NotWeightsError('a storage is cut short')
    numbers = (self.offset, *self.size, *self.stride)
    if min(numbers) < 0 or len(self.size) != len(self.stride):
      raise _NotWeightsError('a tensor has no such shape')
    if not all(self.size):
      return np.zeros(self.size, dtype)
    last = self.offset + sum(
      (n - 1) * s for n, s in zip(self.size, self.stride, strict=True)
    )
    # The second condition: strides of 0 could make much of little.
    if last >= len(flat) or math.prod(self.size) > len(flat):
      raise _NotWeightsError('a tensor reaches past its storage')
    return np.lib.stride_tricks.as_strided(
      flat[self.offset :],
      self.size,
      [s * dtype.itemsize for s in self.stride],
    ).copy()


def _read_zip(data):
  """(value, {key: bytes}) of a file of torch 1.6 or newer."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    infos = {info.filename: info for info in archive.infolist()}
    tops = [name for name in infos if name.endswith('/data.pkl')]
    if len(tops) != 1:
      raise _NotWeightsError('it has no data.pkl')
    # torch stores without compression; a bomb would need it, or parts that
    # overlap.
    if sum(info.file_size for info in archive.infolist()) > len(data):
      raise _NotWeightsError('its parts overlap')
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
      raise _NotWeightsError('it is compressed')
    root = tops[0].removesuffix('data.pkl')
    order = f'{root}byteorder'
    if order in infos and archive.read(order) != b'little':
      raise _NotWeightsError('its numbers are not little-endian')
    value = _interpret(io.BytesIO(archive.read(tops[0])))
    prefix = f'{root}data/'
    return value, {
      name.removeprefix(prefix): archive.read(name)
      for name in infos
      if name.startswith(prefix)
    }


def _read_old(data):
  """(value, {key: bytes}) of a file of torch before 1.6."""
  stream = io.BytesIO(data)
  if _interpret(stream) != _MAGIC:
    raise _NotWeightsError('it does not begin as one')
  _interpret(stream)  # the version of the format
  if _interpret(stream).get('little_endian') is not True:
    raise _NotWeightsError('its numbers are not little-endian')
  lengths = {}
  value = _interpret(stream, lengths)
  storages = {}
  for key in _interpret(stream):
    storage = lengths[key]
    (length,) = struct.unpack('<q', stream.read(8))
    if length != storage.length:
      raise _NotWeightsError('a storage has not the length that it should')
    itemsize = np.dtype(_STORAGES[storage.kind]).itemsize
    storages[key] = stream.read(length * itemsize)
  return value, storages


def _interpret(stream, storages=None):
  """The value that the instructions up to the next stop describe.

  Args:
    stream: where the instructions are.
    storages: filled with every storage that is named, by its key.
  """
  stack, marks, memo = [], [], {}

  def since_mark():
    at = marks.pop()
    items = stack[at:]
    del stack[at:]
    return items

  for code, argument, _ in pickletools.genops(stream):
    name = code.name
    if name in ('PROTO', 'FRAME'):
      continue
    elif name == 'STOP':
      return stack.pop()
    elif name in _LITERALS:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name == 'MARK':
      marks.append(len(stack))
    elif name == 'EMPTY_DICT':
      stack.append({})
    elif name == 'EMPTY_LIST':
      stack.append([])
    elif name == 'TUPLE':
      stack.append(tuple(since_mark()))
    elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
      count = int(name[-1])
      stack[-count:] = [tuple(stack[-count:])]
    elif name == 'APPEND':
      item = stack.pop()
      stack[-1].append(item)
    elif name == 'APPENDS':
      items = since_mark()
      stack[-1].extend(items)
    elif name == 'SETITEM':
      items = stack[-2:]
      del stack[-2:]
      _store(stack[-1], items)
    elif name == 'SETITEMS':
      items = since_mark()
      _store(stack[-1], items)
    elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
      memo[argument] = stack[-1]
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET', 'GET'):
      stack.append(memo[argument])
    elif name == 'GLOBAL':
      stack.append(_known(argument.replace(' ', '.')))
    elif name == 'STACK_GLOBAL':
      what = stack.pop()
      stack[-1] = _known(f'{_text(stack[-1])}.{_text(what)}')
    elif name == 'BINPERSID':
      stack[-1] = _storage(stack[-1])
      if storages is not None:
        storages[stack[-1].key] = stack[-1]
    elif name == 'REDUCE':
      arguments = stack.pop()
      stack[-1] = _reduce(stack[-1], arguments)
    elif name == 'BUILD':
      # Notes of modules beside their tensors.
      stack.pop()
    else:
      raise _NotWeightsError(f'it holds an instruction {name}')
  raise _NotWeightsError('it is cut short')


_LITERALS = frozenset(
  (
    'BINFLOAT',
    'BININT',
    'BININT1',
    'BININT2',
    'BINSTRING',
    'BINUNICODE',
    'INT',
    'LONG',
    'LONG1',
    'SHORT_BINSTRING',
    'SHORT_BINUNICODE',
    'STRING',
    'UNICODE',
  )
)
_CONSTANTS = {
  'NONE': None,
  'NEWTRUE': True,
  'NEWFALSE': False,
  'EMPTY_TUPLE': (),
}


@dataclasses.dataclass(frozen=True)
class _Name:
  """A name that the instructions refer to; never what it stands for."""

  text: str


def _text(value):
  # Nothing else is printed or hashed: of nested tuples that share their parts
  # it would take for ever.
  if not isinstance(value, str):
    raise _NotWeightsError('a name is no text')
  return value


def _store(into, items):
  for name, item in zip(items[::2], items[1::2], strict=True):
    # An optimiser's state is by number.
    into[name if type(name) is int else _text(name)] = item


def _known(text):
  if text not in _NAMES:
    raise _NotWeightsError(f'it refers to {text}, which is no tensor')
  return _Name(text)


def _storage(persistent):
  kind, storage, key, _, length, *_ = persistent
  if kind != 'storage' or storage.text not in _STORAGES:
    raise _NotWeightsError('it refers to something outside that is no storage')
  return _Storage(storage.text, _text(key), int(length))


def _reduce(function, arguments):
  if function == _Name(_DICT):
    pairs = arguments[0] if arguments else ()
    return {_text(name): item for name, item in pairs}
  if function == _Name(_TENSOR):
    storage, offset, size, stride, *_ = arguments
    if not isinstance(storage, _Storage):
      raise _NotWeightsError('a tensor has no storage')
    return _Tensor(storage, int(offset), tuple(size), tuple(stride))
  if function == _Name(_PARAMETER) and isinstance(arguments[0], _Tensor):
    return arguments[0]
  raise _NotWeightsError('it calls what is no tensor')
