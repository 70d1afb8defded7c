"""Finite tasks as tables, with which everything can be computed exactly: made of environments, and made environments.

of_env      of a deterministic environment, by walking through its states
of_grid     of a level of `jaxrl.envs.grids`, with all its chance
of_chain    of a chain of `jaxrl.envs.chains`
environment an environment whose parameters are the tables, so that tasks may be stacked and mapped
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import spaces
from jaxrl.envs.chains import ChainParams
from jaxrl.envs.grids import Level
from jaxrl.ops import trees
from jaxrl.types import Env, EnvParams, EnvStep, memoize

# Of grids.py: up, down, left, right, stay.
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))


@struct.dataclass
class FiniteMDP:
    """A task of T time steps as tables of S states and A actions; a state that ends an episode leads to itself, unpaid.

    Attributes:
      transitions: probability of the next state, [S, A, S].
      rewards: expected reward, [S, A].
      start: probability of the first state, [S].
      horizon: T (static).
    """

    transitions: Any
    rewards: Any
    start: Any
    horizon: int = struct.field(pytree_node=False)


def policy_return(mdp: FiniteMDP, actions: np.ndarray) -> float:
    """The exact return of a deterministic policy.

    Args:
      mdp: the task.
      actions: what it does at each time in each state, [T, S].

    Example:
      >>> policy_return(combination_lock(3), np.zeros((3, 5), int))
      1.0
    """
    transitions, rewards, start = tables(mdp)
    states, value = np.arange(len(start)), np.zeros(len(start))
    for action in actions[::-1]:
        value = rewards[states, action] + transitions[states, action] @ value
    return float(start @ value)


def combination_lock(length: int, num_actions: int = 2, slip: float = 0.0) -> FiniteMDP:
    """A lock: 1 for taking action 0 in each of `length` steps, 0 for anything else.

    Args:
      length: T.
      num_actions: A.
      slip: probability that an action is replaced by a uniform one.

    Example:
      >>> combination_lock(2).transitions.shape
      (4, 2, 4)
    """
    size = length + 2  # the path, its end, and what leads nowhere
    ahead, astray = np.eye(size), np.zeros((size, size))
    for state in range(length):
        ahead[state] = np.eye(size)[state + 1]
    astray[:, -1] = 1.0
    astray[length] = np.eye(size)[length]
    transitions = np.repeat(astray[:, None], num_actions, axis=1)
    transitions[:, 0] = ahead
    transitions = (1.0 - slip) * transitions + slip * transitions.mean(axis=1, keepdims=True)
    rewards = np.zeros((size, num_actions))
    rewards[length - 1] = transitions[length - 1, :, length]
    return FiniteMDP(transitions, rewards, np.eye(size)[0], length)


def of_grid(level: Level, horizon: int | None = None) -> FiniteMDP:
    """The tables of one level of `jaxrl.envs.grids`.

    Args:
      level: one level.
      horizon: T; None: the level's time limit.

    Returns:
      The task over the states that can be reached, and one where an episode has ended.
    """
    level = jax.tree.map(np.asarray, level)
    width, num_objects = round(len(level.wall) ** 0.5), len(level.position)
    first = (int(level.start), tuple(bool(x) for x in level.present))
    states, rows = {first: 0}, []
    for cell, exists in _growing(states):
        row = []
        for move in _MOVES:
            place = np.clip(np.add(divmod(cell, width), move), 0, int(level.side) - 1)
            target = int(place[0] * width + place[1])
            target = cell if level.wall[target] else target
            taken = [exists[i] and level.position[i] == target for i in range(num_objects)]
            outcomes = {(): float(np.prod([1.0 - level.p_terminate[i] for i in range(num_objects) if taken[i]]))}
            for i in range(num_objects):
                # The probability that the object is there afterwards.
                back = float(level.p_respawn[i]) if level.present[i] else 0.0
                there = 0.0 if taken[i] else 1.0 if exists[i] else back
                both = ((True, there), (False, 1.0 - there))
                outcomes = {(*known, x): p * q for known, p in outcomes.items() for x, q in both}
            known = [(states.setdefault((target, e), len(states)), p) for e, p in outcomes.items() if p > 0.0]
            paid = float(sum(level.reward[i] for i in range(num_objects) if taken[i]))
            row.append((known, paid))
        rows.append(row)
    return _assemble(rows, {0: 1.0}, int(level.max_episode_steps) if horizon is None else horizon)


def of_chain(params: ChainParams) -> FiniteMDP:
    """The tables of one chain of `jaxrl.envs.chains`; noise has mean 0 and leaves no trace in them.

    Args:
      params: of one chain.

    Example:
      >>> from jaxrl.envs import chains
      >>> from jaxrl.analysis.effective_horizon import effective_horizon
      >>> found = effective_horizon(of_chain(chains.levels("Short", (3, 3))(jax.random.key(0))))
      >>> found.least_k, found.optimal_return, found.random_return
      (1, 1.0, 0.0)
    """
    length, right = int(params.length), int(params.right)
    number = lambda side, time: 2 + side * (length - 1) + time - 1
    rows = []
    for side in range(2):
        was_right = [int(action == (right ^ side)) for action in range(2)]
        last = length == 1
        rows.append([([] if last else [(number(x, 1), 1.0)], 2.0 * x - 1.0 if last else 0.0) for x in was_right])
    for side in range(2):
        for time in range(1, length):
            last = time + 1 == length
            rows.append([([] if last else [(number(side, time + 1), 1.0)], 2.0 * side - 1.0 if last else 0.0)] * 2)
    return _assemble(rows, {0: 0.5, 1: 0.5}, length)


def of_env(
    env: Env, params: EnvParams | None = None, horizon: int | None = None, max_states: int = 20_000
) -> FiniteMDP:
    """The tables of a deterministic environment, by trying every action in every state that can be reached.

    Args:
      env: with discrete actions; of its state every leaf counts, a counter of steps too.
      params: its parameters; None: the default.
      horizon: T; None: the environment's time limit.
      max_states: beyond so many it gives up.

    Returns:
      The task over the states that were met, and one where an episode has ended.

    Raises:
      ValueError: another key gives another result, there is no time limit, actions are not discrete, or there are too
        many states.

    Example:
      >>> import jaxrl
      >>> of_env(jaxrl.make_env("gymnax/DeepSea-bsuite", size=3)).rewards.shape
      (7, 2)
    """
    horizon = env.max_episode_steps if horizon is None else horizon
    if horizon is None or not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"of_env: needs discrete actions and a time limit; {env.name!r} has {env.action_space} and "
            f"max_episode_steps = {env.max_episode_steps}. Pass horizon for the limit."
        )
    params = env.default_params() if params is None else params
    keys = jax.random.split(jax.random.key(0), 2)
    actions = jnp.arange(env.action_space.n)

    @jax.jit
    def all_actions(state: Any) -> Any:
        def one(key: Any, state: Any, action: Any) -> Any:
            after, result = env.step(key, state, action, params)
            return after, result.reward, result.ended

        each = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))
        return each(keys, state, actions)

    named = lambda tree: tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))
    first = jax.jit(jax.vmap(env.reset, (0, None)))(keys, params)[0]
    first, other = (jax.tree.map(lambda x, i=i: np.asarray(x[i]), first) for i in range(2))
    _same(env, named(first), named(other))
    states, met, rows = {named(first): 0}, [first], []
    for _ in range(horizon):
        frontier = met[len(rows) :]
        if not frontier:
            break
        # Few shapes, so that there are few programs.
        size = 1 << (len(frontier) - 1).bit_length()
        batch = jax.tree.map(lambda *x: np.stack(x), *frontier, *frontier[:1] * (size - len(frontier)))
        after, reward, ended = jax.tree.map(np.asarray, all_actions(batch))
        for i in range(len(frontier)):
            row = []
            for a in range(env.action_space.n):
                one, two = (jax.tree.map(lambda x, j=j, i=i, a=a: x[j, i, a], after) for j in range(2))
                _same(env, (named(one), reward[0, i, a], ended[0, i, a]), (named(two), reward[1, i, a], ended[1, i, a]))
                if not ended[0, i, a] and named(one) not in states:
                    states[named(one)] = len(states)
                    met.append(one)
                row.append(([] if ended[0, i, a] else [(states[named(one)], 1.0)], float(reward[0, i, a])))
            rows.append(row)
        if len(states) > max_states:
            raise ValueError(f"of_env: {env.name!r} has more than max_states = {max_states} states.")
    # States first met at the horizon are never acted in.
    rows += [[([], 0.0)] * env.action_space.n] * (len(states) - len(rows))
    return _assemble(rows, {0: 1.0}, horizon)


@memoize
def environment(num_states: int, num_actions: int, horizon: int) -> Env:
    """An environment of tables: its parameters are a `FiniteMDP` with arrays of those sizes, which may be mapped.

    Args:
      num_states: S.
      num_actions: A.
      horizon: T, after which an episode terminates.

    Returns:
      The environment; an observation is the state and the time, both one-hot, [S + T]. Rewards are the expected ones.
      The default parameters are a task in which nothing happens.

    Example:
      >>> env = environment(5, 2, 3)
      >>> mdp = trees.as_arrays(combination_lock(3))
      >>> state, obs = env.reset(jax.random.key(0), mdp)
      >>> obs.tolist()
      [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """

    def observe(state: Any) -> Any:
        cell, time = state
        one_hot = lambda x, n: jax.nn.one_hot(x, n, dtype=jnp.float32)
        return jnp.concatenate([one_hot(cell, num_states), one_hot(jnp.minimum(time, horizon - 1), horizon)])

    def reset(key: Any, params: FiniteMDP) -> tuple[Any, Any]:
        state = (_drawn(key, params.start), jnp.int32(0))
        return state, observe(state)

    def step(key: Any, state: Any, action: Any, params: FiniteMDP) -> tuple[Any, EnvStep]:
        cell, time = state
        after = (_drawn(key, params.transitions[cell, action]), time + 1)
        never = jnp.zeros((), bool)
        return after, EnvStep(observe(after), params.rewards[cell, action], after[1] >= horizon, never)

    def default_params() -> FiniteMDP:
        still = np.repeat(np.eye(num_states)[:, None], num_actions, axis=1)
        return trees.as_arrays(FiniteMDP(still, np.zeros((num_states, num_actions)), np.eye(num_states)[0], horizon))

    return Env(
        name=f"tables/{num_states}x{num_actions}x{horizon}",
        reset=reset,
        step=step,
        default_params=default_params,
        observation_space=spaces.box(0.0, 1.0, (num_states + horizon,)),
        action_space=spaces.Discrete(num_actions),
        max_episode_steps=horizon,
    )


def padded(mdp: FiniteMDP, num_states: int) -> FiniteMDP:
    """The same task with states added that nothing leads to, so that tasks of several sizes may be stacked.

    Args:
      mdp: the task.
      num_states: at least its own.

    Example:
      >>> padded(combination_lock(2), 6).rewards.shape
      (6, 2)
    """
    transitions, rewards, start = tables(mdp)
    more = num_states - len(start)
    if more < 0:
        raise ValueError(f"padded: the task has {len(start)} states, more than num_states = {num_states}.")
    wider = np.pad(transitions, ((0, more), (0, 0), (0, more)))
    wider[len(start) :, :, -1] = 1.0
    return dataclasses.replace(
        mdp, transitions=wider, rewards=np.pad(rewards, ((0, more), (0, 0))), start=np.pad(start, (0, more))
    )


def tables(mdp: FiniteMDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transitions, rewards and start as float64, checked.

    Args:
      mdp: the task.

    Raises:
      ValueError: they do not fit together, or probabilities do not sum to 1.
    """
    transitions, rewards, start = (np.asarray(x, np.float64) for x in (mdp.transitions, mdp.rewards, mdp.start))
    num_states, num_actions = rewards.shape
    fits = transitions.shape == (num_states, num_actions, num_states) and start.shape == (num_states,)
    if not fits or num_actions < 2 or mdp.horizon < 1:
        raise ValueError(
            "FiniteMDP: needs transitions [S, A, S], rewards [S, A], start [S], at least two actions and one step; got "
            f"{transitions.shape}, {rewards.shape}, {start.shape} and horizon = {mdp.horizon}."
        )
    if not np.allclose(transitions.sum(-1), 1.0, atol=1e-5) or not np.isclose(start.sum(), 1.0, atol=1e-5):
        raise ValueError("FiniteMDP: probabilities of next states and of the first state must sum to 1.")
    return transitions, rewards, start


def _growing(states: dict) -> Any:
    """All keys in order, also those that are added meanwhile."""
    done = 0
    while done < len(states):
        fresh = list(states)[done:]
        done += len(fresh)
        yield from fresh


def _assemble(rows: list, start: dict[int, float], horizon: int) -> FiniteMDP:
    """Tables of `rows[state][action] = ([(next state, probability)], reward)`; what is missing to 1 is the end."""
    size, num_actions = len(rows) + 1, len(rows[0])
    transitions, rewards = np.zeros((size, num_actions, size)), np.zeros((size, num_actions))
    for state, row in enumerate(rows):
        for action, (outcomes, reward) in enumerate(row):
            for following, probability in outcomes:
                transitions[state, action, following] += probability
            rewards[state, action] = reward
    transitions[:, :, -1] += 1.0 - transitions.sum(axis=2)
    first = np.zeros(size)
    for state, probability in start.items():
        first[state] = probability
    return FiniteMDP(transitions, rewards, first, horizon)


def _same(env: Env, one: Any, other: Any) -> None:
    if one != other:
        raise ValueError(
            f"of_env: {env.name!r} is not deterministic: two keys gave two results. Make its tables by hand."
        )


def _drawn(key: Any, probs: Any) -> Any:
    """A state from its probabilities, by their sums: a table of them may hold exact zeros."""
    sums = jnp.cumsum(probs)
    return jnp.sum(sums <= jax.random.uniform(key) * sums[-1]).astype(jnp.int32)
