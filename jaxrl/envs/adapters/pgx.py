"""Pgx 2.6 (https://github.com/sotetsuk/pgx): board and card games, 2048 and MinAtar, from the side of player 0.

In games of several players the others play inside of `step`, by a policy that draws uniformly from the legal moves.
Pgx has no time limits; MinAtar's games other than Freeway may go on for ever.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.envs.adapters import _common
from jaxrl.ops import trees
from jaxrl.types import Env, EnvStep, memoize

pgx = _common.load("pgx")

OPPONENTS = ("random",)


def names() -> tuple[str, ...]:
    """All games that `pgx.make` offers."""
    return tuple(pgx.available_envs())


@memoize
def make(name: str, opponent: str = "random") -> Env:
    """Wraps one game.

    Args:
      name: Pgx's own name, `connect_four` for instance.
      opponent: policy of the other players: `random`. Which player begins is drawn at the start of a game.

    Returns:
      The environment. Observations are the dict of `board`, as player 0 sees it, and `action_mask`, shape [A]; the
      reward is that of player 0, summed until it is player 0's turn again. An illegal move loses the game.

    Raises:
      ValueError: there is no such opponent.

    Example:
      >>> make("tic_tac_toe").action_space
      Discrete(n=9)
    """
    if opponent not in OPPONENTS:
        raise ValueError(f"pgx: opponent must be one of {', '.join(OPPONENTS)}; got {opponent!r}.")
    with _common.quiet():
        wrapped = pgx.make(name)
    alone = wrapped.num_players == 1

    def until_own_turn(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """Lets the others move; returns the rewards that player 0 gets meanwhile too."""

        def body(carry: tuple[jax.Array, Any, jax.Array]) -> tuple[jax.Array, Any, jax.Array]:
            key, state, reward = carry
            key, key_move, key_step = jax.random.split(key, 3)
            logits = jnp.where(state.legal_action_mask, 0.0, -jnp.inf)
            state = play(state, jax.random.categorical(key_move, logits), key_step)
            return key, state, reward + state.rewards[0]

        def waits(carry: tuple[jax.Array, Any, jax.Array]) -> jax.Array:
            return (carry[1].current_player != 0) & ~carry[1].terminated

        _, state, reward = jax.lax.while_loop(waits, body, (key, state, jnp.zeros(())))
        return state, reward

    def play(state: Any, action: Any, key: jax.Array) -> Any:
        return _common.cast_like(_without_observation(wrapped.step(state, action, key)), state)

    def observe(state: Any) -> dict[str, jax.Array]:
        # `Env.observe` warns of its argument `player_id`; what it calls does not.
        board = wrapped._observe(state, jnp.zeros((), jnp.int32))
        return {"board": board, "action_mask": state.legal_action_mask}

    def reset(key: jax.Array, params: tuple[()]) -> tuple[Any, dict[str, jax.Array]]:
        del params
        key_init, key_others = jax.random.split(key)
        state = _without_observation(trees.as_arrays(wrapped.init(key_init)))
        if not alone:
            state, _ = until_own_turn(key_others, state)
        return state, trees.as_arrays(observe(state))

    def step(key: jax.Array, state: Any, action: Any, params: tuple[()]) -> tuple[Any, EnvStep]:
        del params
        key_step, key_others = jax.random.split(key)
        after = play(state, action, key_step)
        reward = after.rewards[0]
        if not alone:
            after, later = until_own_turn(key_others, after)
            reward += later
        return after, EnvStep(
            obs=_common.cast_like(observe(after), obs_like),
            reward=reward.astype(jnp.float32),
            terminated=after.terminated,
            truncated=after.truncated,
        )

    obs_like = jax.eval_shape(lambda key: reset(key, ())[1], jax.random.key(0))
    return Env(
        name=f"pgx/{name}",
        reset=reset,
        step=step,
        default_params=tuple,
        observation_space=_common.unbounded(obs_like),
        action_space=spaces.Discrete(obs_like["action_mask"].shape[0]),
    )


def _without_observation(state: Any) -> Any:
    """Drops the observation that Pgx keeps in its state, in chess most of it: it follows from the rest."""
    return state.replace(observation=jnp.zeros((0,)))
