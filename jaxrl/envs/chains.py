"""Delayed chains: the first action decides what the last step pays, with nothing but noise between.

Oh et al. (2020, arXiv:2007.08794, appendix A.3). An episode begins in one of two states at random; in each of them
another action is right. Whatever it is, a walk of `length` steps follows on the chain of right or of wrong first
actions, whose end pays 1 or -1 and terminates. So the best return is 1, that of a policy that never looks 0.

===========  =========  ===========================================================================
name         length     besides
===========  =========  ===========================================================================
Short        5–30
ShortNoisy   5–30       every step before the last pays 1 or -1 at random
Long         5–50
LongNoisy    5–50       every step before the last pays 1 or -1 at random
Distractor   5–30       seen are two bits that matter and 20 that are drawn anew in each step
===========  =========  ===========================================================================

`levels(name)` draws the length, uniformly, and which action is right. The paper's text was not at hand when this was
written: lengths, noise and bits are those of re-implementations; that the first state is one of two, and which two bits
matter in Distractor (whether it is the first step; which of the two states or chains it is), are this module's reading.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxrl import spaces
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, Key, memoize

__all__ = ["ChainParams", "ChainState", "levels", "make", "names"]


@struct.dataclass
class ChainParams:
    """Parameters of a chain.

    Attributes:
      length: steps of an episode.
      right: the right action in the first of the two states; in the second one the other is right.
      noise: what steps before the last pay, with a random sign.
    """

    length: Int[Array, ""]
    right: Int[Array, ""]
    noise: Float[Array, ""]


@struct.dataclass
class ChainState:
    """State of an episode.

    Attributes:
      time: steps since the reset.
      side: in the first step which of the two states it is; later whether the first action was right.
      bits: the distracting ones.
    """

    time: Int[Array, ""]
    side: Int[Array, ""]
    bits: Bool[Array, " bits"]


class _Spec(NamedTuple):
    length: tuple[int, int]
    noise: float = 0.0
    num_bits: int = 0


_SPECS = {
    "Short": _Spec((5, 30)),
    "ShortNoisy": _Spec((5, 30), noise=1.0),
    "Long": _Spec((5, 50)),
    "LongNoisy": _Spec((5, 50), noise=1.0),
    "Distractor": _Spec((5, 30), num_bits=20),
}


def names() -> tuple[str, ...]:
    """All distributions."""
    return tuple(_SPECS)


@memoize
def levels(name: str, length: tuple[int, int] | None = None) -> Callable[[Key], ChainParams]:
    """How the chains of a distribution are drawn.

    Args:
      name: one of `names()`.
      length: least and greatest; None takes the distribution's.

    Returns:
      `(key) -> ChainParams`, pure; equal arguments give the same function.

    Example:
      >>> batch = jax.vmap(levels("Short"))(jax.random.split(jax.random.key(0), 50))
      >>> int(batch.length.min()) >= 5, int(batch.length.max()) <= 30
      (True, True)
    """
    spec = _spec(name, length)

    def draw(key: Key) -> ChainParams:
        key_length, key_right = jax.random.split(key)
        return ChainParams(
            length=jax.random.randint(key_length, (), spec.length[0], spec.length[1] + 1),
            right=jax.random.randint(key_right, (), 0, 2),
            noise=jnp.float32(spec.noise),
        )

    return draw


@memoize
def make(name: str, length: tuple[int, int] | None = None) -> Env:
    """Makes the chains of a distribution; which one it is, the parameters say.

    Args:
      name: one of `names()`.
      length: least and greatest; None takes the distribution's.

    Returns:
      The environment; its default parameters have the greatest length. An observation is the number of the state:
      0 or 1 in the first step, then 2 + t - 1 on the wrong chain and 2 + greatest length + t - 1 on the right one after
      t steps. Distractor: 22 bits as float32.

    Raises:
      ValueError: the range of lengths is empty.

    Example:
      >>> make("Short").observation_space, make("Distractor").observation_space.shape
      (Discrete(n=62), (22,))
    """
    spec = _spec(name, length)
    greatest = spec.length[1]

    def observation(state: ChainState) -> Array:
        first = state.time == 0
        if spec.num_bits:
            return jnp.concatenate([jnp.stack([first, state.side == 1]), state.bits]).astype(jnp.float32)
        step = jnp.clip(state.time, 1, greatest) - 1
        return jnp.where(first, state.side, 2 + greatest * state.side + step).astype(jnp.int32)

    def reset(key: Key, params: ChainParams) -> tuple[ChainState, Array]:
        del params
        key_side, key_bits = jax.random.split(key)
        side = jax.random.bernoulli(key_side).astype(jnp.int32)
        state = ChainState(jnp.int32(0), side, jax.random.bernoulli(key_bits, shape=(spec.num_bits,)))
        return state, observation(state)

    def step(key: Key, state: ChainState, action: Array, params: ChainParams) -> tuple[ChainState, EnvStep]:
        key_noise, key_bits = jax.random.split(key)
        was_right = (action == (params.right ^ state.side)).astype(jnp.int32)
        after = ChainState(
            time=state.time + 1,
            side=jnp.where(state.time == 0, was_right, state.side),
            bits=jax.random.bernoulli(key_bits, shape=(spec.num_bits,)),
        )
        at_end = after.time >= params.length
        sign = jnp.where(jax.random.bernoulli(key_noise), 1.0, -1.0)
        return after, EnvStep(
            obs=observation(after),
            reward=jnp.where(at_end, 2.0 * after.side.astype(jnp.float32) - 1.0, params.noise * sign),
            terminated=at_end,
            truncated=jnp.zeros((), bool),
        )

    def default_params() -> ChainParams:
        return trees.as_arrays(ChainParams(np.int32(greatest), np.int32(0), np.float32(spec.noise)))  # type: ignore[arg-type]

    many = spaces.box(0.0, 1.0, (2 + spec.num_bits,))
    return Env(
        name=f"chains/{name}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=many if spec.num_bits else spaces.Discrete(2 + 2 * greatest),
        action_space=spaces.Discrete(2),
        max_episode_steps=greatest,
    )


def _spec(name: str, length: tuple[int, int] | None) -> _Spec:
    spec = _SPECS[name] if length is None else _SPECS[name]._replace(length=length)
    if not 1 <= spec.length[0] <= spec.length[1]:
        raise ValueError(
            f"chains/{name}: length must be (least, greatest) with 1 <= least <= greatest; got length = {spec.length}."
        )
    return spec
