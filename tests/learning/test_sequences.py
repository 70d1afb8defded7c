"""Sequences: what a network remembers at each row against a walk row by row; a whole update against its formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import buffers, spaces, values
from jaxrl.algorithms import dqn
from jaxrl.networks import q_network as networks
from jaxrl.networks.q_network import QNetworkConfig, q_network
from jaxrl.values import sequences
from jaxrl.values.scalars import signed_hyperbolic, signed_parabolic
from jaxrl.values.sequences import Sequences

W, N, BURN_IN, LENGTH, STEPS = 7, 3, 2, 3, 3
GAMMA = 0.9


def fresh(net, memory, start):
    """The memory that a row begins with: another episode's is forgotten."""
    initial = net.initial_memory(start.shape)
    return jax.tree.map(lambda x, y: jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), y, x), memory, initial)


@pytest.mark.parametrize("core", ["lstm", pytest.param("s5", marks=pytest.mark.slow)])
def test_recall_forgets_where_an_episode_starts(core):
    config = QNetworkConfig(hidden=(6, 5), memory=core, memory_size=4)
    net = q_network(spaces.box(-1.0, 1.0, (2,)), spaces.Discrete(2), config=config)
    keys = jax.random.split(jax.random.key(0), 4)
    obs = jax.random.normal(keys[0], (W, N, 2))
    # The second sequence has an episode that starts in the burn-in, the third one among the rows that are learned.
    start = jnp.zeros((W, N), bool).at[1, 1].set(True).at[4, 2].set(True)
    draw = lambda x: jax.random.normal(keys[1], x.shape) if x.dtype == jnp.float32 else x + 1.0 + 0.5j
    memory = jax.tree.map(draw, net.initial_memory((N,)))
    params = jax.jit(lambda key: networks.init_params(net, key, obs[0, 0]))(keys[2])
    steps = jax.random.randint(keys[3], (LENGTH * N,), 1, STEPS + 1)
    recall = jax.jit(sequences.recall, static_argnums=(0, 4))(
        net, params, Sequences(obs, start, memory), steps, BURN_IN
    )
    look = jax.jit(lambda obs, memory: net.apply(params, obs[None], None, 1, memory, jnp.zeros((1, N), bool)))
    walked, outputs = [memory], []
    for t in range(W):
        output = look(obs[t], fresh(net, walked[-1], start[t]))
        walked.append(output.memory)
        outputs.append(output.values[0])
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, recall.first, walked[BURN_IN])
    for m in range(LENGTH * N):
        row, n = BURN_IN + m // N, m % N
        jax.tree.map(lambda x, y, m=m, n=n: close(x[m], y[n]), recall.before, walked[row])
        jax.tree.map(lambda x, y, m=m, n=n: close(x[m], y[n]), recall.after, walked[row + int(steps[m])])
    run = jax.jit(sequences.evaluate_rows, static_argnums=(0, 4, 5, 6, 7))
    found = run(net, params, Sequences(obs, start, memory), recall.first, BURN_IN, LENGTH, None, 1)
    close(found.values, jnp.concatenate(outputs[BURN_IN : BURN_IN + LENGTH]))
    np.testing.assert_array_equal(
        sequences.starts_of(Sequences(obs, start, memory), BURN_IN, LENGTH), start[2:5].ravel()
    )


def test_learned_rows_follow_the_windows():
    num_rows, num_envs = 6, 2
    index = jnp.array([0, 7, 10])
    found = sequences.learned_rows(index, num_rows, num_envs, BURN_IN, LENGTH)
    expected = [
        ((i // num_envs + BURN_IN + k) % num_rows) * num_envs + i % num_envs for k in range(LENGTH) for i in [0, 7, 10]
    ]
    assert found.tolist() == expected


def test_an_update_is_that_of_the_formulas():
    """Double Q over n steps under the transform, from stored memory with burn-in; priorities of sequences."""
    env = jaxrl.make_env("probe/Memory")
    network = QNetworkConfig(hidden=(6, 6), dueling=True, memory="lstm", memory_size=4)
    sizes = {"num_envs": 2, "num_steps": 4, "num_rounds": 1, "batch_size": 4, "capacity": 32, "num_warmup_steps": 8}
    config = dqn.Config(**sizes, n_step=2, burn_in=BURN_IN, length=LENGTH, prioritized=True, network=network)
    agent = dqn.dqn(env, head=values.scalar(transform="signed_hyperbolic"), backup=values.double(), config=config)
    hparams = agent.hyperparams(gamma=GAMMA, priority_max=0.8)
    state = jax.jit(agent.init)(jax.random.key(0), hparams)
    # The target is another network, so that the two cannot be confused.
    state = state.replace(target_params=jax.tree.map(lambda x: 0.5 * x + 0.1, state.params))
    after, metrics = jax.jit(agent.step)(state, hparams)

    # The draw, as `step` makes it.
    bits = buffers.prioritized(32, 2, 4, BURN_IN + LENGTH + 1).noise(jax.random.split(state.key, 5)[3], 1, 1)[0, 0]
    buffer = buffers.prioritized(32, 2, 4, BURN_IN + LENGTH + 1)
    experience = after.buffer.items
    whole = buffer.add(hparams.replay, dataclasses.replace(state.buffer), jax.tree.map(lambda x: x[8:12], experience))
    index = np.asarray(buffer.sample(hparams.replay, whole, bits, 0.0).index)
    assert np.asarray(experience.extras[1])[:12].sum() > 4, "episodes start inside of windows"

    net = q_network(env.observation_space, env.action_space, config=network)
    look = jax.jit(lambda params, obs, memory: networks.apply_one(net, params, obs, memory=memory))
    zero = jax.tree.map(np.asarray, net.initial_memory())
    stored_rows = jax.tree.map(np.asarray, experience)
    losses, priorities = [], {}
    for i in index:
        row, column = divmod(int(i), 2)
        item = jax.tree.map(lambda x, c=column: x[:, c], stored_rows)
        at = lambda tree, t: jax.tree.map(lambda x: x[t], tree)
        stored, starts = item.extras
        memory = {name: at(stored, row) for name in ("online", "frozen")}
        params = {"online": state.params, "frozen": state.target_params}
        known, here = [], []
        for t in range(row, row + BURN_IN + LENGTH + 1):
            outputs = {k: look(params[k], item.obs[t], zero if starts[t] else memory[k]) for k in params}
            memory = {k: outputs[k].memory for k in params}
            known.append(memory)
            here.append(np.asarray(outputs["online"].values[:, 0]))
        errors = []
        for k in range(LENGTH):
            total, power, last = 0.0, 1.0, None
            for j in range(2):
                t = row + BURN_IN + k + j
                total, power, last = total + power * float(item.reward[t]), power * GAMMA, t
                if item.terminated[t]:
                    break
            following = {
                name: np.asarray(look(params[name], item.next_obs[last], known[last - row][name]).values[:, 0])
                for name in params
            }
            best = following["online"].argmax()
            value = float(signed_parabolic(jnp.float32(following["frozen"][best])))
            goal = total + (0.0 if item.terminated[last] else power * value)
            taken = here[BURN_IN + k][int(item.action[row + BURN_IN + k])]
            errors.append(abs(float(signed_hyperbolic(jnp.float32(goal))) - taken))
        losses.append(0.5 * np.square(errors).mean())
        priorities[int(i)] = (0.8 * np.max(errors) + 0.2 * np.mean(errors) + 1e-6) ** 0.6
    np.testing.assert_allclose(float(metrics["loss/value"]), np.mean(losses), rtol=1e-4)
    leaves = np.asarray(after.buffer.priorities.levels[0]).ravel()
    np.testing.assert_allclose([leaves[i] for i in priorities], list(priorities.values()), rtol=1e-3)


def test_a_link_of_a_chain_learns_as_a_network_alone():
    """Actions all random, so that both see the same."""
    env = jaxrl.make_env("probe/Credit")
    sizes = {"num_envs": 2, "num_steps": 2, "num_rounds": 1, "batch_size": 4, "capacity": 16, "num_warmup_steps": 4}
    config = dqn.Config(**sizes, network=QNetworkConfig(hidden=(8,)))
    alone, chained = dqn.dqn(env, config=config), dqn.dqn(env, config=dataclasses.replace(config, num_links=3))
    random = {"epsilon_start": 1.0, "epsilon_end": 1.0}
    start = jax.jit(chained.init)(jax.random.key(0), chained.hyperparams(**random))
    assert start.params["params"]["advantage"]["kernel"].shape[0] == 3
    start = start.replace(target_params=jax.tree.map(lambda x: 0.5 * x, start.params))
    both, metrics = jax.jit(chained.step)(start, chained.hyperparams(**random))
    step, found = jax.jit(alone.step), []
    for link in range(3):
        pick = lambda tree, link=link: jax.tree.map(lambda x: x[link], tree)
        parts = {name: pick(getattr(start, name)) for name in ("params", "opt_state", "target_params")}
        one, info = step(start.replace(**parts), alone.hyperparams(**random))
        found.append(float(info["loss/value"]))
        same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        jax.tree.map(same, pick((both.params, both.opt_state)), (one.params, one.opt_state))
    np.testing.assert_allclose(float(metrics["loss/value"]), np.mean(found), rtol=1e-5)
    assert len(set(found)) == 3
