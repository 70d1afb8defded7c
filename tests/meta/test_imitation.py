"""Warm starts: what a rule saw is what it is asked about, and a network that imitates A2C teaches an agent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import lpg
from jaxrl.envs import grids
from jaxrl.meta import imitation, trials
from jaxrl.objectives import rules

WORLDS = {"side": (4, 4), "steps": (20, 20), "num_objects": (2, 2), "num_walls": 0}
STUDENT, TEACHER = rules.lpg(hidden=16, num_bins=8, core="gru"), rules.a2c(8, -3.0, 3.0, standardize=False)


@functools.cache
def agent_of(rule):
    config = lpg.Config(num_envs=16, num_steps=20, tabular=True, optimizer="sgd")
    return lpg.lpg(grids.make("Small", **WORLDS), rule, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_learners": 3}, "num_learners must be even, half for each rule; got num_learners = 3"),
        ({"num_lives": 0}, "num_lives must be a whole number of at least 1"),
        ({"teacher": rules.a2c(4)}, "the same number of bins; got 8 of lpg and 4 of a2c"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        imitation.imitate(agent_of, **{"student": STUDENT, "teacher": TEACHER, **changes})


@pytest.mark.slow
def test_what_a_rule_saw_gives_the_update_again():
    agent = agent_of(TEACHER)
    hparams = agent.hyperparams(learning_rate=40.0, prediction_learning_rate=4.0)
    state = jax.jit(agent.init)(jax.random.key(0), hparams)
    after, metrics, inputs = jax.jit(imitation.observed(agent_of, TEACHER))(state, hparams)
    plain, plain_metrics = jax.jit(agent.step)(state, hparams)
    found, wanted = (after.params, metrics), (plain.params, plain_metrics)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)
    targets = TEACHER.targets(hparams.objective, inputs)
    np.testing.assert_allclose(jnp.mean(jnp.square(targets.policy)), plain_metrics["rule/policy_square"], rtol=1e-5)
    gain = jnp.mean(targets.policy * jnp.log(inputs.probability))
    np.testing.assert_allclose(gain, plain_metrics["rule/gain"], rtol=1e-4)


@pytest.mark.slow
def test_an_imitated_rule_teaches_agents():
    """After 50 updates on levels that it has not seen, near the teacher; an untaught one is no better than chance."""
    tasks = grids.levels("Small", **WORLDS)
    rates = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}
    learn = imitation.imitate(agent_of, STUDENT, TEACHER, tasks=tasks, num_lives=20)
    weights, metrics = jax.jit(learn)(jax.random.key(0), agent_of(TEACHER).hyperparams(**rates))
    error, divergence = np.asarray(metrics["imitation/policy"]), np.asarray(metrics["imitation/prediction"])
    keys = jax.random.split(jax.random.key(1), 64)

    def tried(rule, params):
        agent = agent_of(rule)
        hparams = agent.hyperparams(**rates, objective=params)
        run = jax.jit(trials.trial(agent, 16, sampled=True, tasks=tasks, chunk=16))
        return [float(run(keys, hparams, jnp.int32(life)).mean()) for life in (0, 50)]

    chance, taught = tried(STUDENT, weights)
    _, untaught = tried(STUDENT, STUDENT.init(jax.random.key(2)))
    _, teacher = tried(TEACHER, TEACHER.init(jax.random.key(0)))
    assert error[0] > 0.5
    assert error[-1] < 0.2
    assert divergence[-1] < 0.02
    assert taught > chance + 0.75 * (teacher - chance), (chance, untaught, taught, teacher)
    assert untaught < chance + 0.25 * (teacher - chance), (chance, untaught, taught, teacher)
