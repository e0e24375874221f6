"""The device mesh: one `data` axis over every device, and placement on it.

`jit` over arrays that are sharded along this axis is what `pmap` has become:
the same program runs on one CPU, on eight GPUs and on a pod. A mesh may reach
over several processes, of which each has and sees the values of its own devices
only.
"""

import functools
import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sjft_jax import processes

AXIS = 'data'
# Bytes; of the buffers of XLA's CPU backend.
_ALIGNMENT = 64
# Numbers below which splitting a parameter costs more than it saves.
_SPLIT_LEAST = 2**12


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
      Each process of the mesh gives its equal part, in their order.
    mesh: from `make`.
    axis: the dimension to split.

  Returns:
    The same values as committed JAX arrays.
  """
  many = len({device.process_index for device in mesh.devices.flat})
  split = sharding(mesh, axis)

  def place(part):
    shape = list(part.shape)
    shape[axis] *= many
    return jax.make_array_from_process_local_data(split, part, tuple(shape))

  if many == 1:
    return jax.device_put(value, split)
  return jax.tree.map(place, value)


def sharding(mesh, axis: int = 0) -> NamedSharding:
  """The sharding that splits dimension `axis` over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def aligned(shape, dtype):
  """An array that XLA's CPU backend takes as it lies, without a copy.

  Args:
    shape, dtype: as of np.empty.

  Returns:
    NumPy, uninitialised. What a device was given of it must not be written to
    again.
  """
  size = math.prod(shape) * np.dtype(dtype).itemsize
  held = np.empty(size + _ALIGNMENT, np.uint8)
  first = -held.ctypes.data % _ALIGNMENT
  return held[first : first + size].view(dtype).reshape(shape)


def put(value, mesh):
  """Places a pytree on the devices: whole on each, but for what lies there.

  What is not yet on the devices of several processes must be the same in each.
  """
  whole = NamedSharding(mesh, PartitionSpec())
  devices = set(mesh.devices.flat)

  def place(x):
    if isinstance(x, jax.Array) and x.sharding.device_set == devices:
      return x
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, whole, lambda at: x[at])

  return jax.tree.map(place, value)


def replicate(value, mesh):
  """Places a copy of every array of a pytree on every device, as `put`."""
  value = put(value, mesh)
  if all(x.is_fully_replicated for x in jax.tree.leaves(value)):
    return value
  whole = NamedSharding(mesh, PartitionSpec())
  with processes.together():
    return jax.jit(lambda x: x, out_shardings=whole)(value)


def localise(value, mesh):
  """A pytree of arrays on a mesh, whole on every device of `own(mesh)`."""
  value, mine = replicate(value, mesh), own(mesh)

  def place(x):
    return jax.make_array_from_single_device_arrays(
      x.shape,
      NamedSharding(mine, PartitionSpec()),
      [shard.data for shard in x.addressable_shards],
    )

  return value if mine == mesh else jax.tree.map(place, value)


def parameter_sharding(shape, mesh, sharded: bool) -> NamedSharding:
  """How a parameter lies on the devices: whole, or the longest side split.

  Args:
    shape: of the parameter.
    mesh: from `make`.
    sharded: split the longest side that the device count divides. What has
      none, or is small, stays whole.
  """
  sides = [n if n % mesh.size == 0 else 0 for n in shape]
  if not sharded or not any(sides) or math.prod(shape) < _SPLIT_LEAST:
    return NamedSharding(mesh, PartitionSpec())
  return sharding(mesh, sides.index(max(sides)))


def constrain(value, mesh, sharded: bool):
  """Within a jitted function: a pytree that lies by `parameter_sharding`."""
  return jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(
      x, parameter_sharding(x.shape, mesh, sharded)
    ),
    value,
  )


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
  return reduce(_allgather(value), axis=0)


def _allgather(value):
  """The arrays of all processes, [process, ...]."""
  value = np.ascontiguousarray(value)
  with processes.together():
    # As bytes: JAX would cut 64-bit numbers to 32.
    every = multihost_utils.process_allgather(value.view(np.uint8))
  return np.asarray(every).view(value.dtype)


def interleave(part_nc: np.ndarray, total: int) -> np.ndarray:
  """All rows of a table of which process i of p made rows i, i + p, ...

  Args:
    part_nc: this process's rows, in order, [n, c]; 64 bits stay whole.
    total: rows of the table.

  Returns:
    [total, c], the same in every process.
  """
  count = jax.process_count()
  if count == 1:
    return part_nc
  most = -(-total // count)
  every_pnc = _allgather(np.pad(part_nc, ((0, most - len(part_nc)), (0, 0))))
  return every_pnc.swapaxes(0, 1).reshape(-1, part_nc.shape[1])[:total]


def anywhere(flag: bool, mesh) -> jax.Array:
  """Whether any process of the mesh has the flag set; a bool scalar to fetch.

  All processes of the mesh ask at the same point.
  """
  flags = np.full(len(mesh.local_devices), flag)
  return _any(mesh)(shard(flags, mesh))


@functools.lru_cache(maxsize=8)
def _any(mesh):
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda flags: flags.any(), out_shardings=whole)


def fetch(value) -> np.ndarray:
  """The whole of a sharded array as NumPy."""
  return np.asarray(jax.device_get(value))
