"""Bytes of .caffemodel files, by the encoding of protocol buffers."""


def varint(n):
  """A number, seven bits a byte."""
  out = b''
  while n > 127:
    out, n = out + bytes([n % 128 + 128]), n // 128
  return out + bytes([n])


def part(number, value):
  """A field of bytes."""
  return varint(number * 8 + 2) + varint(len(value)) + value


def blob(value, old=False, double=False):
  """An array; old ones have four axes."""
  shape = value.shape
  data = part(8, value.astype('<f8').tobytes())
  if not double:
    data = part(5, value.astype('<f4').tobytes())
  if old:
    four = (1,) * (4 - len(shape)) + shape
    return data + b''.join(
      varint(8 * i) + varint(n) for i, n in enumerate(four, 1)
    )
  return part(7, part(1, b''.join(map(varint, shape)))) + data


def layer(name, *blobs, old=False, rest=b''):
  """A layer in its network."""
  # Name and blobs are fields 1 and 7, in old layers 4 and 6.
  names, values = (4, 6) if old else (1, 7)
  body = part(names, name.encode())
  body += b''.join(part(values, b) for b in blobs)
  return part(2 if old else 100, body + rest)
