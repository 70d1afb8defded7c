"""Domain randomization."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.ops import trees
from jaxrl.types import Action, Env, EnvParams, EnvState, EnvStep, Key, Observation, memoize


@struct.dataclass
class RandomizedState:
    """State of `randomize_params`.

    Attributes:
      params: what the reset drew: the wrapped environment's parameters in this episode.
      inner: state of the wrapped environment.
    """

    params: EnvParams
    inner: EnvState


@dataclasses.dataclass(frozen=True)
class UniformLeaves:
    """Draws some leaves of parameters uniformly and keeps the others; made by `uniform_leaves`.

    Attributes:
      ranges: (name, low, high) of each leaf drawn.
    """

    ranges: tuple[tuple[str, float, float], ...]

    def __call__(self, key: Key, params: EnvParams) -> EnvParams:
        """Draws: `(key, params) -> params`. Floats from [low, high), integers from low … high.

        Raises:
          ValueError: the parameters have no such leaf, or an integer leaf has bounds that are not whole.
        """
        leaves = trees.named_leaves(params)
        for (name, low, high), key_leaf in zip(self.ranges, jax.random.split(key, len(self.ranges)), strict=True):
            path = _leaf_path(name, leaves)
            leaf = leaves[path]
            if not jnp.issubdtype(leaf.dtype, jnp.integer):
                drawn = jax.random.uniform(key_leaf, leaf.shape, leaf.dtype, low, high)
            elif low == int(low) and high == int(high):
                drawn = jax.random.randint(key_leaf, leaf.shape, int(low), int(high) + 1, leaf.dtype)
            else:
                raise ValueError(
                    f"uniform_leaves: the bounds of an integer must be whole numbers; {name!r} is {leaf.dtype} and "
                    f"was given low = {low}, high = {high}."
                )
            params = trees.replace_leaf(params, path, drawn)
        return params

    def __str__(self) -> str:
        return ",".join(f"{name}:{low:g}:{high:g}" for name, low, high in self.ranges)


def uniform_leaves(ranges: tuple[tuple[str, float, float], ...]) -> UniformLeaves:
    """Makes a sampler for `randomize_params` that draws some leaves uniformly and independently.

    Args:
      ranges: (name, low, high) of each leaf. A name is a leaf's dotted path or the end of one, if that is the only leaf
        that ends so: `gravity` for `inner.gravity`.

    Returns:
      A hashable function `(key, params) -> params`. Called with parameters that lack a leaf it raises a ValueError.

    Raises:
      ValueError: there are no ranges, a leaf is named twice, or bounds are not finite or not in order.

    Example:
      >>> import jax
      >>> from jaxrl.envs import make_env
      >>> sample = uniform_leaves((("gravity", 9.0, 11.0),))
      >>> bool(9 <= sample(jax.random.key(0), make_env("gymnax/CartPole-v1").default_params()).gravity < 11)
      True
    """
    ranges = tuple((str(name), float(low), float(high)) for name, low, high in ranges)
    leaf_names = [name for name, _, _ in ranges]
    if not ranges or len(set(leaf_names)) < len(leaf_names):
        raise ValueError(f"uniform_leaves: needs at least one leaf, and each once; got {leaf_names}.")
    for name, low, high in ranges:
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"uniform_leaves: bounds must be finite and in order; {name!r} was given low = {low}, high = {high}."
            )
    return UniformLeaves(ranges)


@memoize
def randomize_params(env: Env, sample: Callable[[Key, EnvParams], EnvParams]) -> Env:
    """Domain randomization: every reset draws the parameters of its episode, which live in the state.

    Tobin et al. 2017, Domain Randomization for Transferring Deep Neural Networks (https://arxiv.org/abs/1703.06907).

    Args:
      env: any environment.
      sample: `(key, params) -> params`, hashable, given the parameters that `reset` was given: `uniform_leaves(...)`,
        or a function of your own.

    Returns:
      The environment with `RandomizedState`; the parameters are those of `env`, used by `reset` only.

    Raises:
      ValueError: `sample` names leaves that the parameters do not have, or returns another type than it was given.

    Example:
      >>> from jaxrl.envs import make_env
      >>> randomize_params(make_env("gymnax/CartPole-v1"), uniform_leaves((("gravity", 9.0, 11.0),))).name
      'gymnax/CartPole-v1|randomize_params(gravity:9:11)'
    """
    given = jax.eval_shape(env.default_params)
    drawn = jax.eval_shape(sample, jax.random.key(0), given)
    if jax.tree.structure(given) != jax.tree.structure(drawn):
        raise ValueError(
            "randomize_params: sample must return parameters of the type that it is given; of "
            f"{env.name!r} it makes {jax.tree.structure(drawn)} from {jax.tree.structure(given)}."
        )
    for name, before in trees.named_leaves(given).items():
        after = trees.named_leaves(drawn)[name]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                "randomize_params: sample must return parameters of the type that it is given; of "
                f"{env.name!r} it makes {name} {after.dtype}{list(after.shape)} from "
                f"{before.dtype}{list(before.shape)}."
            )

    def reset(key: Key, params: EnvParams) -> tuple[RandomizedState, Observation]:
        key_params, key_reset = jax.random.split(key)
        drawn = trees.as_arrays(sample(key_params, params))
        inner, obs = env.reset(key_reset, drawn)
        return RandomizedState(drawn, inner), obs

    def step(key: Key, state: RandomizedState, action: Action, params: EnvParams) -> tuple[RandomizedState, EnvStep]:
        del params  # only of use to the reset
        inner, result = env.step(key, state.inner, action, state.params)
        return dataclasses.replace(state, inner=inner), result

    label = str(sample) if isinstance(sample, UniformLeaves) else getattr(sample, "__name__", type(sample).__name__)
    return env._replace(name=f"{env.name}|randomize_params({label})", reset=reset, step=step)


def _leaf_path(name: str, leaves: dict[str, Any]) -> str:
    if name in leaves:
        return name
    ending = [path for path in leaves if path.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ValueError(
            f"uniform_leaves: {name!r} must name one leaf of the parameters; it names {', '.join(ending)}. "
            "Give the whole path."
        )
    near = difflib.get_close_matches(name, leaves, n=3, cutoff=0.5)
    raise ValueError(
        f"uniform_leaves: the parameters have no leaf {name!r}. "
        + (f"Nearest: {', '.join(near)}." if near else f"There are: {', '.join(leaves)}.")
    )
