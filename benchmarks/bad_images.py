"""Whether a run survives 500 troublesome images among 5,000 good ones.

  python -m benchmarks.bad_images [--good=5000] [--troublesome=500]

Writes image folders of two classes in a temporary directory: good JPEG files,
files that cannot be used (BAD) and files that look odd and can (ODD). Then runs
the selection on them by the command itself, and prints for each kind how many
were written and how many of them bad_images.csv lists, and the peak memory of
the run against that of a run on the good files alone.
"""

import argparse
import csv
import io
import pathlib
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np
from PIL import Image


def encoded(image, kind, **settings):
  """A PIL image as a file."""
  buffer = io.BytesIO()
  image.save(buffer, kind, **settings)
  return buffer.getvalue()


def picture(rng, side=64):
  """Smooth colours with some noise."""
  small = rng.integers(0, 256, (6, 6, 3), np.uint8)
  image = np.asarray(Image.fromarray(small).resize((side, side)), np.int16)
  noisy = image + rng.integers(-20, 21, image.shape)
  return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def good(rng):
  """An ordinary JPEG file."""
  return encoded(picture(rng), 'JPEG', quality=int(rng.integers(60, 96)))


def cut(data, rng):
  """The file without its end."""
  return data[: int(rng.integers(3, len(data) - 2))]


def bomb(rng):
  """A PNG file of some kB that says, and holds, 60,000 x 60,000 pixels."""
  del rng

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)

  header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  # Of the pixels only a part: whoever decodes it asks for the memory first.
  rows = zlib.compress(bytes(2**22), 9)
  parts = chunk(b'IHDR', header), chunk(b'IDAT', rows), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def flipped(rng):
  """A PNG file with a wrong byte in its pixels."""
  data = bytearray(encoded(picture(rng), 'PNG'))
  data[int(rng.integers(100, len(data) - 100))] ^= 0x55
  return bytes(data)


def sixteen(rng):
  """A 16-bit grey PNG."""
  pixels = rng.integers(0, 2**16, (40, 50)).astype(np.uint16)
  return encoded(Image.fromarray(pixels), 'PNG')


def animated(rng, kind):
  """Three frames."""
  frames = [picture(rng) for _ in range(3)]
  return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


# name -> (suffix, random generator -> file)
BAD = {
  'truncated JPEG': ('jpg', lambda rng: cut(good(rng), rng)),
  'truncated PNG': (
    'png',
    lambda rng: cut(encoded(picture(rng), 'PNG'), rng),
  ),
  'truncated WebP': (
    'webp',
    lambda rng: cut(encoded(picture(rng), 'WEBP'), rng),
  ),
  'zero bytes': ('jpg', lambda rng: b''),
  'text called .jpg': ('jpg', lambda rng: b'<html>404 not found</html>'),
  'damaged PNG': ('png', flipped),
  'decompression bomb': ('png', bomb),
}
ODD = {
  '16-bit PNG': ('png', sixteen),
  'CMYK JPEG': (
    'jpg',
    lambda rng: encoded(picture(rng).convert('CMYK'), 'JPEG'),
  ),
  'animated GIF': ('gif', lambda rng: animated(rng, 'GIF')),
  'animated WebP': ('webp', lambda rng: animated(rng, 'WEBP')),
  '20,000 px wide': (
    'jpg',
    lambda rng: encoded(picture(rng).resize((20_000, 60)), 'JPEG'),
  ),
  'palette PNG': ('png', lambda rng: encoded(picture(rng).convert('P'), 'PNG')),
  'PNG called .jpg': ('jpg', lambda rng: encoded(picture(rng), 'PNG')),
}


def write(root, good_count, troublesome, seed=0):
  """Writes a source of two classes.

  Returns:
    {'<class>/<file>': kind}; the kind of ordinary images is 'good'.
  """
  rng = np.random.default_rng(seed)
  kinds = list((BAD | ODD).items())
  written = {}
  for i in range(good_count + troublesome):
    name, (suffix, make) = 'good', ('jpg', good)
    if i < troublesome:
      name, (suffix, make) = kinds[i % len(kinds)]
    path = f'{"ab"[i % 2]}/{rng.integers(10**9):09d}-{i}.{suffix}'
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(make(rng))
    written[path] = name
  return written


def run(root, source, workdir):
  """Selects from `source`; (ids listed as bad, seconds, peak GiB so far)."""
  start = time.monotonic()
  settings = {
    'target.train': root / 'target',
    'target.test': root / 'target',
    'source.main.dir': source,
    'describe.resize': 32,
    'describe.crop': 32,
    'budget.initial': 10,
    'budget.maximum': 20,
    'max_bad_fraction': 0.2,
    'guard.cache': root / 'cache',
    'rounds': 0,
  }
  flags = [f'--config.{name}={value}' for name, value in settings.items()]
  command = [sys.executable, '-m', 'sjft_jax.main', f'--workdir={workdir}']
  command += ['--config=configs/folders.py', *flags]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  seconds = time.monotonic() - start
  listed = set()
  if (workdir / 'bad_images.csv').exists():
    with open(workdir / 'bad_images.csv', newline='') as file:
      listed = {row['id'] for row in csv.DictReader(file)}
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  return listed, seconds, peak


def main():
  """Writes, runs twice, prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--good', type=int, default=5000)
  parser.add_argument('--troublesome', type=int, default=500)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    write(root / 'target', 40, 0, seed=1)
    write(root / 'good', args.good, 0)
    written = write(root / 'source', args.good, args.troublesome)
    # The smaller peak first: the system reports the largest of all children.
    _, seconds, peak = run(root, root / 'good', root / 'run-good')
    print(f'good images alone: {seconds:.0f} s, peak memory {peak:.2f} GiB')
    listed, seconds, peak = run(root, root / 'source', root / 'run')
    print(f'with troublesome ones: {seconds:.0f} s, peak memory {peak:.2f} GiB')
  print(f'{"":24}written  listed as bad  should be')
  for kind in (*BAD, *ODD, 'good'):
    mine = [path for path, name in written.items() if name == kind]
    count = sum(f'main:{path}' in listed for path in mine)
    due = len(mine) if kind in BAD else 0
    print(f'{kind:24}{len(mine):7}{count:15}{due:11}')


if __name__ == '__main__':
  main()
