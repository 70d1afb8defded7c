"""Losses that are data in deep Q-learning: graphs learn what written heads learn, all of them in one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import spaces, values
from jaxrl.algorithms import dqn, pqn
from jaxrl.networks.q_network import QNetworkConfig, QOutput
from jaxrl.ops import expressions, trees
from jaxrl.testing import plain

N, A = 6, 3
DRAWS = np.random.default_rng(0)
TAKEN, FOLLOWING = DRAWS.normal(size=N), DRAWS.normal(size=(N, A))
REWARD, DISCOUNT = DRAWS.normal(size=N), np.where(np.arange(N) == 2, 0.0, 0.9)
BEST = FOLLOWING.max(-1)
GOAL = REWARD + DISCOUNT * BEST
LOSSES = {
    "dqn_reg": (values.dqn_reg(0.3), (TAKEN - GOAL) ** 2 + 0.3 * TAKEN),
    "dqn_clipped": (
        values.dqn_clipped(),
        np.maximum(TAKEN, (TAKEN - GOAL) ** 2 + GOAL) + np.maximum(TAKEN - GOAL, DISCOUNT * BEST**2),
    ),
}
CONFIG = dqn.Config(
    num_envs=2, num_rounds=8, batch_size=8, capacity=64, num_warmup_steps=8, network=QNetworkConfig(hidden=(8,))
)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_formulas(name):
    head, want = LOSSES[name]
    following = QOutput(jnp.asarray(FOLLOWING, jnp.float32)[..., None])
    weight = jax.nn.one_hot(jnp.argmax(following.values[..., 0], axis=-1), A)
    target = values.Target(jnp.asarray(REWARD, jnp.float32), jnp.asarray(DISCOUNT, jnp.float32), following, weight)
    loss, surprise = head.loss(head.init(), QOutput(jnp.asarray(TAKEN, jnp.float32)[:, None]), target)
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(surprise, np.abs(TAKEN - GOAL), rtol=1e-5, atol=1e-5)
    assert head.mean(head.init(), following).shape == (N, A)


@functools.cache
def agent_of(head):
    return dqn.dqn(jaxrl.make_env("probe/Credit"), head=head, config=CONFIG)


def trained(head, **hparams):
    agent = agent_of(head)
    return jax.jit(jaxrl.train(agent, 4))(jax.random.key(0), agent.hyperparams(learning_rate=1e-2, **hparams))[0]


@pytest.mark.slow
def test_many_losses_train_in_one_program_and_each_as_its_own_head():
    """TD, DQNReg and DQNClipped as graphs, against the heads that are written."""
    losses = (expressions.TD, expressions.DQN_REG, expressions.DQN_CLIPPED)
    agent = agent_of(values.graph(expressions.TD, 12))
    programs = [expressions.program_of(expression, 12) for expression in losses]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *programs)
    hparams = agent.hyperparams(learning_rate=1e-2)

    def run(program):
        return jaxrl.train(agent, 4)(jax.random.key(0), dataclasses.replace(hparams, head=program))[0].params

    together = jax.jit(jax.vmap(run))(stacked)
    start = jax.jit(agent.init)(jax.random.key(0), hparams).params
    for i, head in enumerate((values.scalar(), values.dqn_reg(), values.dqn_clipped())):
        own = jax.tree.map(lambda x, i=i: x[i], together)
        alone = trained(head).params
        for (path, a), b, c in zip(
            trees.named_leaves(plain(own)).items(),
            jax.tree.leaves(plain(alone)),
            jax.tree.leaves(plain(start)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=path)
            assert np.abs(b - c).max() > 1e-3


def test_gradients_flow_through_the_values_at_the_observation_only():
    """A loss of the successor's values alone has none, whichever network they are from."""
    head = values.graph(("add", ("sum_list", "online_next"), ("sum_list", ("add", "target_now", "target_next"))))
    params = head.init()

    def total(q, following):
        target = values.Target(
            jnp.zeros(N), jnp.ones(N), QOutput(following), jnp.ones((N, A)) / A, action=jnp.zeros(N, int)
        )
        target = dataclasses.replace(target, online_next=QOutput(following), now=QOutput(following))
        return jnp.sum(head.loss(params, QOutput(q), target)[0])

    q = jnp.asarray(FOLLOWING, jnp.float32)[..., None]
    by_q, by_following = jax.jit(jax.grad(total, (0, 1)))(q, q)
    assert not by_q.any()
    assert not by_following.any()


def test_messages():
    class Masked:
        observation_space = spaces.Dict((("obs", spaces.Box(-1.0, 1.0, (3,))), ("action_mask", spaces.Box(0, 1, (2,)))))

    env = jaxrl.make_env("probe/Credit")
    masked = env._replace(observation_space=Masked.observation_space)
    with pytest.raises(ValueError, match="knows nothing of illegal ones; got 'probe/Credit'"):
        dqn.dqn(masked, head=values.graph(), config=CONFIG)
    with pytest.raises(ValueError, match="pqn: the head 'graph' reads the values of all actions"):
        pqn.pqn(env, head=values.graph())
