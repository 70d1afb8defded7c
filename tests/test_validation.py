"""Arguments that cannot work are refused before anything is traced, with the rule, the names and the values."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import validation
from jaxrl.algorithms import ppo
from jaxrl.networks.q_network import q_network
from jaxrl.ops import minibatches
from jaxrl.types import Objective


@dataclasses.dataclass(frozen=True)
class Config:
    num_parts: int = 2
    color: Literal["red", "blue"] = "red"
    free: str = "anything"


@pytest.mark.parametrize("value", [0, -3, 2.0, True, None, "2"])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"owner: num_parts must be a whole number of at least 1; got num_parts = "):
        validation.counts("owner", Config(num_parts=value), ("num_parts",))


@pytest.mark.parametrize("value", [1, 10**6, np.int64(3)])
def test_counts_pass(value):
    validation.counts("owner", Config(num_parts=value), ("num_parts",))


def test_choices_are_those_of_the_annotation():
    validation.choices("owner", Config(color="blue", free="whatever"))
    with pytest.raises(ValueError, match=r"owner: color must be one of red, blue; got color = 'green'"):
        validation.choices("owner", Config(color="green"))  # type: ignore[arg-type]


def test_a_head_that_is_missing_or_of_another_size_is_refused():
    objective = Objective(lambda key: (), lambda params, inputs: (jnp.float32(0), {}), (("cost", 2),), "careful")
    validation.heads("owner", objective, (("cost", 2), ("other", 1)))
    for present in ((), (("cost", 3),)):
        with pytest.raises(
            ValueError, match=r"owner: the objective 'careful' needs the heads \[\('cost', 2\)\].*heads="
        ):
            validation.heads("owner", objective, present)


def test_a_rollout_that_does_not_split_evenly_is_refused():
    minibatches.validate(3, 4, 6, whole_sequences=False)
    with pytest.raises(ValueError, match=r"4 \* 3 = 12 and num_minibatches = 5"):
        minibatches.validate(3, 4, 5, whole_sequences=False)
    minibatches.validate(3, 4, 2, whole_sequences=True)
    with pytest.raises(ValueError, match=r"num_envs = 4, num_minibatches = 3"):
        minibatches.validate(3, 4, 3, whole_sequences=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_envs": 0}, "ppo: num_envs must be a whole number"),
        ({"num_epochs": 1.5}, "ppo: num_epochs must be a whole number"),
        ({"schedule": "step"}, "ppo: schedule must be one of constant, linear, cosine; got schedule = 'step'"),
        ({"normalize_advantage": "all"}, "ppo: normalize_advantage must be one of minibatch, batch, ewma, none"),
        ({"matmul_precision": "half"}, "ppo: matmul_precision must be one of float32, tensorfloat32, bfloat16"),
        ({"reset": "never"}, "ppo: reset must be one of fresh, pooled, cached"),
        ({"reset": "pooled"}, "needs reset_size"),
        ({"num_minibatches": 7}, "must be divisible by num_minibatches"),
    ],
)
def test_ppo_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        jaxrl.ppo(jaxrl.make_env("probe/Constant"), config=ppo.Config(**change))


@pytest.mark.parametrize("name", ["mrq", "disco", "discrete_sac", "lpg"])
def test_illegal_actions_are_not_ignored(name):
    with pytest.raises(ValueError, match=rf"{name}: it knows nothing of illegal actions; got 'probe/ActionMask'.*ppo"):
        jaxrl.make(name, jaxrl.make_env("probe/ActionMask"))


CARTPOLE = jaxrl.make_env("gymnax/CartPole-v1")


@pytest.mark.parametrize("key", [jnp.zeros(2, jnp.uint32), 0])
def test_training_takes_a_typed_key(key):
    agent = jaxrl.ppo(CARTPOLE)
    with pytest.raises(ValueError, match=r"a typed random key is needed; got dtype (uint32|int)\. Make it with"):
        jaxrl.train(agent, 1)(key, agent.hyperparams())


def test_several_values_without_a_map_are_named_with_their_shapes():
    agent = jaxrl.ppo(CARTPOLE)
    hparams = agent.hyperparams(learning_rate=jnp.array([1e-3, 1e-4]))
    message = r"ppo: learning_rate has shape \(2,\) instead of \(\).*jax.vmap.*What failed: .*\(2,\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(jaxrl.train(agent, 1), jax.random.key(0), hparams)
    state = jax.eval_shape(agent.init, jax.random.key(0), agent.hyperparams())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda state: jaxrl.advance(agent, state, hparams, 1), state)


@pytest.mark.parametrize("name", ["ppo", "trpo", "dqn"])
def test_a_network_for_other_actions_is_refused(name):
    other = jaxrl.make_env("gymnax/Acrobot-v1")
    network = (
        q_network(other.observation_space, other.action_space, 1)
        if name == "dqn"
        else jaxrl.actor_critic(other.observation_space, other.action_space)
    )
    with pytest.raises(ValueError, match=r"built for actions Discrete\(n=3\), and those of 'gymnax/CartPole-v1' are"):
        jaxrl.make(name, CARTPOLE, network=network)
