"""One function over the members of a population: where they are computed, and how many at a time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

_AXIS = "members"


def over_members(
    function: Callable[..., Any], in_axes: tuple[Any, ...], num_devices: int = 1, chunk: int | None = None
) -> Callable[..., Any]:
    """Maps a function over members: `jax.vmap`, cut into one part a device and each part into chunks.

    The results are those of `jax.vmap(function, in_axes)` but for the order of float sums.

    Args:
      function: of one member; pure.
      in_axes: for each argument 0 (a leading axis [P]), None (shared by all), or a tree of these of the argument's
        structure. At least one leaf has a leading axis.
      num_devices: the first so many of `jax.devices()` take P / num_devices members each. They run apart: none waits
        for another.
      chunk: members that are vmapped together on a device, one chunk after another; None: all of the device's.

    Returns:
      The function of all members; its results have a leading axis [P].

    Raises:
      ValueError: a count is not positive; when called: there are fewer devices, or P does not split evenly.

    Example:
      >>> import jax.numpy as jnp
      >>> scaled = over_members(lambda x, scale: scale * x, (0, None), chunk=2)
      >>> scaled(jnp.arange(4.0), 10.0).tolist()
      [0.0, 10.0, 20.0, 30.0]
    """
    _check_counts(num_devices, chunk)

    def mapped(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        has_axis = [axis is not None for axis in _flat_axes(in_axes, arguments)]
        own = [leaf for leaf, is_own in zip(leaves, has_axis, strict=True) if is_own]
        shared = [leaf for leaf, is_own in zip(leaves, has_axis, strict=True) if not is_own]
        check_split(own[0].shape[0], num_devices, chunk)

        def one(own: list[Any], shared: list[Any]) -> Any:
            parts = {True: iter(own), False: iter(shared)}
            return function(*jax.tree.unflatten(structure, [next(parts[is_own]) for is_own in has_axis]))

        def on_device(own: list[Any], shared: list[Any]) -> Any:
            if chunk is None or chunk >= own[0].shape[0]:
                return jax.vmap(one, (0, None))(own, shared)
            return jax.lax.map(lambda row: one(row, shared), own, batch_size=chunk if chunk > 1 else None)

        if num_devices == 1:
            return on_device(own, shared)
        return jax.shard_map(
            on_device,
            mesh=Mesh(np.asarray(_devices(num_devices)), (_AXIS,)),
            in_specs=(PartitionSpec(_AXIS), PartitionSpec()),
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,
        )(own, shared)

    return mapped


def check_split(num_members: int, num_devices: int, chunk: int | None) -> None:
    """Refuses numbers that do not divide.

    Raises:
      ValueError: a count is not positive, the members do not split evenly over devices, or those of a device over
        chunks.
    """
    _check_counts(num_devices, chunk)
    if num_members % num_devices:
        raise ValueError(f"num_members must be divisible by num_devices; got {num_members} and {num_devices}.")
    each = num_members // num_devices
    if chunk is not None and chunk < each and each % chunk:
        raise ValueError(
            f"The members of a device must be divisible by chunk; got {num_members} members / {num_devices} devices = "
            f"{each}, chunk = {chunk}."
        )


def _check_counts(num_devices: int, chunk: int | None) -> None:
    for name, value in {"num_devices": num_devices, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {name} = {value}.")


def _flat_axes(in_axes: tuple[Any, ...], arguments: tuple[Any, ...]) -> list[int | None]:
    flat: list[int | None] = []
    for axes, argument in zip(in_axes, arguments, strict=True):
        if axes is None or isinstance(axes, int):
            flat += [axes] * len(jax.tree.leaves(argument))
        else:
            flat += jax.tree.leaves(axes, is_leaf=lambda x: x is None)
    return flat


def _devices(num_devices: int) -> list[Any]:
    devices = jax.devices()
    if num_devices > len(devices):
        raise ValueError(
            f"num_devices = {num_devices}, but there are {len(devices)} ({devices[0].device_kind}). On a CPU "
            f'jax.config.update("jax_num_cpu_devices", {num_devices}) before the first computation makes as many.'
        )
    return devices[:num_devices]
