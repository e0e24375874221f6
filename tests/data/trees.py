"""Folders of files that stand for images."""

from sjft_jax.data import datasets


def write(root, *paths, data=b'x'):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def target(tmp_path, per_class=4, classes='ab'):
  """Training and test folders; a file's content is its path."""
  for part, count in (('train', per_class), ('test', 2)):
    for path in (f'{part}/{c}/{i}.jpg' for c in classes for i in range(count)):
      write(tmp_path, path, data=path.encode())
  return {
    'kind': 'folder',
    'train': str(tmp_path / 'train'),
    'test': str(tmp_path / 'test'),
  }


def pool(path):
  return datasets.open_pool({'main': {'dir': str(path)}})
