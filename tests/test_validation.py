"""Arguments that cannot work are refused before anything is traced, with the rule, the names and the values."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import estimators, objectives, spaces, validation
from jaxrl.algorithms import ppo
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.networks import NetworkConfig
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.q_network import q_network
from jaxrl.networks.streaming import StreamingConfig
from jaxrl.ops import minibatches
from jaxrl.types import Env, EnvStep, Objective

CARTPOLE = jaxrl.make_env("gymnax/CartPole-v1")


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


NUM_PARTS = 2


def two_switches() -> Env:
    """Two parts of two actions each; of both the second one is illegal, and pays."""
    mask = spaces.box(0, 1, (2 * NUM_PARTS,), jnp.bool_)
    observe = lambda: {"observation": jnp.ones(3), "action_mask": jnp.array([True, False] * NUM_PARTS)}

    def step(key, state, action, params):
        over = jnp.bool_(True)
        return state, EnvStep(observe(), jnp.sum(action).astype(jnp.float32), over, ~over, {})

    return Env(
        name="test/TwoSwitches",
        reset=lambda key, params: (jnp.float32(0.0), observe()),
        step=step,
        default_params=tuple,
        observation_space=spaces.Dict((("observation", spaces.box(0.0, 1.0, (3,))), ("action_mask", mask))),
        action_space=spaces.MultiDiscrete((2,) * NUM_PARTS),
    )


@pytest.mark.parametrize("name", ["stream_ac", "bpg"])
def test_illegal_actions_of_several_parts_are_not_taken(name):
    env = two_switches()
    agent = jaxrl.make(name, env, num_steps=2)
    state = agent.init(jax.random.key(0), agent.hyperparams())
    obs = env.reset(jax.random.key(0), ())[1]
    act = jax.jit(jax.vmap(lambda key: agent.act(state, agent.initial_memory(), obs, key)[0]))
    assert not act(jax.random.split(jax.random.key(1), 64)).any()
    other = env._replace(action_space=spaces.MultiDiscrete((2, 3)))
    with pytest.raises(
        ValueError, match=r"action_mask of .* must have 5 entries, the parts' masks one after the other"
    ):
        jaxrl.make(name, other)


# Settings of layers of another class, for each algorithm that has any; and a network that is built.
LAYERS = {
    "gymnax/CartPole-v1": (
        *("ppo", "a2c", "trpo", "props", "harpg", "mac", "hnpg", "bpg", "stream_q", "stream_ac"),
        *("dqn", "rainbow", "pqn", "sqirl", "discrete_sac", "mrq"),
    ),
    "gymnax/Pendulum-v1": ("avg", "reppo", "sac", "td3", "mpo", "cqn"),
}


@pytest.mark.parametrize("name, task", [(name, task) for task, names in LAYERS.items() for name in names])
def test_layers_of_another_class_are_refused(name, task):
    wanted = type(ALGORITHMS[name].default_config.network)
    for other in (NetworkConfig(), StreamingConfig(), ControlConfig()):
        if not isinstance(other, wanted):
            message = rf"network must be a {wanted.__name__}, .*; got {type(other).__name__}, network = .*Pass jaxrl"
            with pytest.raises(ValueError, match=message):
                jaxrl.make(name, jaxrl.make_env(task), network=other)


@pytest.mark.parametrize("name", ["hnpg", "bpg", "stream_q", "stream_ac", "reppo", "avg", "cqn", "pqn", "mrq"])
def test_a_built_network_is_refused_where_none_is_taken(name):
    env = jaxrl.make_env("gymnax/Pendulum-v1" if name in LAYERS["gymnax/Pendulum-v1"] else "gymnax/CartPole-v1")
    network = jaxrl.actor_critic(env.observation_space, env.action_space)
    wanted = type(ALGORITHMS[name].default_config.network).__name__
    with pytest.raises(ValueError, match=rf"network must be a {wanted}, .*; got ActorCritic, network = "):
        jaxrl.make(name, env, network=network)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.clip(),
        objectives.kl_penalty(),
        objectives.alpha_penalty(),
        objectives.spo(),
        objectives.dpo(),
        objectives.mdpo(),
        objectives.lpo(),
        objectives.lpo(progress=True),
    ],
    ids=lambda objective: objective.name,
)
def test_data_of_an_older_policy_is_weighted_once(objective):
    build = lambda estimator, **config: jaxrl.ppo(
        CARTPOLE, objective=objective, estimator=estimator, config=ppo.Config(**config)
    )
    for proximal in ("behavior", "recent", "ewma"):
        with pytest.raises(ValueError, match=rf"the objective '{objective.name}' with actor_lag = 1\. Use policy_grad"):
            build(estimators.vtrace(), actor_lag=1, proximal=proximal)
    build(estimators.vtrace())
    build(estimators.gae(), actor_lag=1)


@pytest.mark.parametrize("objective", [objectives.policy_gradient(), objectives.awr(), objectives.vmpo()])
def test_objectives_without_a_ratio_go_with_vtrace(objective):
    jaxrl.ppo(CARTPOLE, objective=objective, estimator=estimators.vtrace(), config=ppo.Config(actor_lag=1))


def test_pmoe_with_vtrace_is_refused():
    env = jaxrl.make_env("gymnax/Pendulum-v1")
    objective = objectives.pmoe(2)
    spaces_of = (env.observation_space, env.action_space)
    net = jaxrl.actor_critic(*spaces_of, policy="mixture", num_components=2, heads=objective.heads)
    with pytest.raises(ValueError, match=r"'pmoe' with actor_lag = 2"):
        jaxrl.ppo(env, net, objective, estimators.vtrace(), config=ppo.Config(actor_lag=2))


@pytest.mark.parametrize("name", ["mrq", "disco", "discrete_sac", "lpg"])
def test_illegal_actions_are_not_ignored(name):
    with pytest.raises(ValueError, match=rf"{name}: it knows nothing of illegal actions; got 'probe/ActionMask'.*ppo"):
        jaxrl.make(name, jaxrl.make_env("probe/ActionMask"))


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
