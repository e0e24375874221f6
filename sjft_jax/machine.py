"""The computer that this process runs on."""

import importlib.metadata
import os
import pathlib
import platform

import jax

# By which a count of pixels, or its logarithm, may differ.
_LIBRARIES = 'jaxlib', 'numpy', 'opencv-python-headless'


def cores() -> int:
  """Processors that this process may use, as of a job that has a part."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def described() -> dict:
  """What describes images here: 'platform', 'device', 'processor', libraries.

  Where one of them differs, images may be decoded, or responses be rounded,
  otherwise.
  """
  device = jax.local_devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'processor': _processor(),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
  }


def words(machine: dict) -> str:
  """What `described` returned, here or elsewhere, in words."""
  named = dict.fromkeys(
    f'{k} {v}' if k in _LIBRARIES else v for k, v in machine.items() if v
  )
  return ', '.join(named)


def _processor():
  """The model of the processor; '' where it is not known."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  named = (line for line in lines if line.startswith('model name'))
  return next(named, '').partition(':')[2].strip()
