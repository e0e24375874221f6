"""The device mesh: one `data` axis over every device, and placement on it.

`jit` over arrays that are sharded along this axis is what `pmap` has become:
the same program runs on one CPU, on eight GPUs and on a pod.
"""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = 'data'


def make(devices=None) -> jax.sharding.Mesh:
  """A one-axis mesh over `devices`, by default over all of them."""
  devices = jax.devices() if devices is None else devices
  # Auto axes: indexing, transposes and top_k of sharded arrays stay legal.
  return jax.make_mesh(
    (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def shard(value, mesh, axis: int = 0):
  """Places `value` with its dimension `axis` split over the devices.

  Args:
    value: array, or pytree of arrays; `axis` must divide by the device count.
    mesh: from `make`.
    axis: the dimension to split.

  Returns:
    The same values as committed JAX arrays.
  """
  return jax.device_put(value, sharding(mesh, axis))


def sharding(mesh, axis: int = 0) -> NamedSharding:
  """The sharding that splits dimension `axis` over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def replicate(value, mesh):
  """Places a copy of every array of a pytree on every device."""
  return jax.device_put(value, NamedSharding(mesh, PartitionSpec()))


def round_up(count: int, mesh) -> int:
  """The smallest multiple of the device count that is at least `count`."""
  return math.ceil(count / mesh.size) * mesh.size


def share() -> tuple[int, int]:
  """(index, count) of this process among those that work together."""
  return jax.process_index(), jax.process_count()


def own(mesh) -> jax.sharding.Mesh:
  """The mesh of this process's devices alone, for work that is shared out."""
  return make(mesh.local_devices)


def over_processes(reduce, value: np.ndarray) -> np.ndarray:
  """Reduces an array over the processes, each of which gives its own.

  Args:
    reduce: np.sum or np.max.
    value: of one shape and dtype in all processes; 64 bits stay whole.

  Returns:
    The reduced array, the same in every process.
  """
  if jax.process_count() == 1:
    return value
  value = np.ascontiguousarray(value)
  # As bytes: JAX would cut 64-bit numbers to 32.
  every = multihost_utils.process_allgather(value.view(np.uint8))
  return reduce(np.asarray(every).view(value.dtype), axis=0)


def fetch(value) -> np.ndarray:
  """The whole of a sharded array as NumPy."""
  return np.asarray(jax.device_get(value))
