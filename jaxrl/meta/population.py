"""A population: P independent members of one algorithm as one algorithm."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.ops import members, trees
from jaxrl.types import (
    Action,
    Algorithm,
    Hyperparams,
    Key,
    Memory,
    Metrics,
    Observation,
    State,
    memoize,
)


@memoize
def population(
    algorithm: Algorithm,
    num_members: int,
    mapped: tuple[str, ...] = (),
    num_devices: int = 1,
    chunk: int | None = None,
) -> Algorithm:
    """Trains P members side by side in one program; each has a key of its own.

    How the members are laid out on the machine changes the speed, and the results only by the order of float sums:
    the members' axis is cut into one part a device, and each device takes its part `chunk` members at a time.

    Args:
      algorithm: what each member runs.
      num_members: P.
      mapped: dotted paths of the hyperparameters' leaves that have a leading axis [P], one value a member, for
        instance `("learning_rate", "env.gravity")`; all others are shared.
      num_devices: over how many of `jax.devices()` the members are spread. On a CPU, one device a core uses cores that
        a single program leaves idle (`jax.config.update("jax_num_cpu_devices", n)` before the first computation).
      chunk: members that are vmapped together on each device, one chunk after another; None takes all at once. Small
        chunks save memory, and on a CPU time where a member alone fills the cache.

    Returns:
      The algorithm whose state, metrics, memory, observations and actions have a leading axis [P]. Its `init` takes
      one key, which is split, or keys of shape [P], one a member.

    Raises:
      ValueError: a count is not positive, a path names no leaf, or P does not split evenly.

    Example:
      >>> import jaxrl
      >>> agent = population(jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1")), 3, mapped=("learning_rate",))
      >>> hparams = agent.hyperparams(learning_rate=[1e-4, 1e-3, 1e-2])
      >>> state, metrics = jaxrl.train(agent, 1)(jax.random.key(0), hparams)
      >>> metrics["loss/policy"].shape
      (1, 3)
    """
    if num_members < 1:
        raise ValueError(f"population: num_members must be at least 1; got num_members = {num_members}.")
    members.check_split(num_members, num_devices, chunk)
    template = algorithm.hyperparams()
    leaves = trees.named_leaves(template)
    if unknown := [name for name in mapped if name not in leaves]:
        raise ValueError(f"population: mapped names {unknown}, which are no leaves; there are {sorted(leaves)}.")
    axes = jax.tree_util.tree_map_with_path(lambda path, _: 0 if trees.path_name(path) in mapped else None, template)
    init_all = members.over_members(algorithm.init, (0, axes), num_devices, chunk)
    step_all = members.over_members(algorithm.step, (0, axes), num_devices, chunk)

    def hyperparams(**changes: Any) -> Hyperparams:
        hparams = algorithm.hyperparams(**changes)

        def spread(path: tuple[Any, ...], leaf: Any, default: Any) -> Any:
            name = trees.path_name(path)
            if name not in mapped or leaf.ndim > default.ndim:
                return leaf
            return jnp.broadcast_to(leaf, (num_members, *leaf.shape))

        return jax.tree_util.tree_map_with_path(spread, hparams, template)

    def init(key: Key, hparams: Hyperparams) -> State:
        return init_all(key if key.ndim else jax.random.split(key, num_members), hparams)

    def step(state: State, hparams: Hyperparams) -> tuple[State, Metrics]:
        return step_all(state, hparams)

    def act(state: State, memory: Memory, obs: Observation, key: Key | None) -> tuple[Action, Memory]:
        if key is None:
            return jax.vmap(lambda s, m, o: algorithm.act(s, m, o, None))(state, memory, obs)
        return jax.vmap(algorithm.act)(state, memory, obs, jax.random.split(key, num_members))

    def initial_memory() -> Memory:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_members, *x.shape)), algorithm.initial_memory())

    return Algorithm(
        init=init,
        step=step,
        act=act,
        hyperparams=hyperparams,
        initial_memory=initial_memory,
        env_steps=algorithm.env_steps * num_members,
        name=f"population({algorithm.name}, {num_members})",
        env=algorithm.env,
        config=algorithm.config,
    )
