"""Every algorithm as a row; each row gets all the laws. A new algorithm adds one or a few rows.

The environments are probes: tiny programs, so that a law costs a second or two of compiling.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from jaxrl import buffers, datasets, ensembles, estimators, levels, objectives, strategies, values
from jaxrl.algorithms import (
    avg,
    bpg,
    ccn,
    cqn,
    disco,
    discrete_sac,
    dqn,
    harpg,
    hnpg,
    lpg,
    mac,
    mpo,
    mrq,
    ppo,
    pqn,
    props,
    reppo,
    sac,
    sqirl,
    stream_ac,
    stream_q,
    stream_td,
    td3,
    trpo,
    utilities,
)
from jaxrl.algorithms.registry import ALGORITHMS
from jaxrl.envs import coverage
from jaxrl.meta import reward_learning, rewards
from jaxrl.meta.evolve import evolve
from jaxrl.meta.pbt import Range, pbt
from jaxrl.meta.persistent import persistent
from jaxrl.networks import NetworkConfig, columnar
from jaxrl.networks.coarse import CoarseConfig
from jaxrl.networks.columnar import ColumnarConfig
from jaxrl.networks.control import ControlConfig
from jaxrl.networks.critics import CriticConfig
from jaxrl.networks.latent import LatentConfig
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.networks.streaming import StreamingConfig
from jaxrl.networks.update_rules import open_rule
from jaxrl.objectives import Clip, rules
from jaxrl.objectives import disco as disco_rules
from jaxrl.ops import expressions, optimizers, trees
from jaxrl.ops.bins import Support
from jaxrl.types import Algorithm


@dataclasses.dataclass(frozen=True)
class Case:
    """One algorithm in a small setting.

    Attributes:
      algorithm: its name in the registry.
      make: builds it; keyword arguments are fields of its `Config`.
      hparams: changes to the default hyperparameters under which every leaf matters.
      options: for each field of `Config` another value that must change the result.
      inert: leaves and fields that cannot matter in this case, each with the reason.
      slow: whether the ordinary tests leave it out.
    """

    algorithm: str
    make: Callable[..., Algorithm]
    hparams: dict[str, Any]
    options: dict[str, Any]
    inert: dict[str, str]
    slow: bool = False


_REMEMBERING = NetworkConfig(hidden=(8,), memory="gru", memory_size=8)


def _ppo(env: str, changes: dict[str, Any] | None = None, **network: Any) -> Callable[..., Algorithm]:
    tiny = {
        "stop_at_target_kl": True,
        "num_envs": 4,
        "num_steps": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "network": NetworkConfig(hidden=(8,), **network),
    }

    def make(**config: Any) -> Algorithm:
        components = {name: config.pop(name) for name in ("objective", "estimator", "optimizer") if name in config}
        return ppo.ppo(jaxrl.make_env(env), config=ppo.Config(**{**tiny, **config}), **components)

    return lambda **config: make(**{**(changes or {}), **config})


# Narrow clips, a finite horizon and a finite target, so that each of them is reached within three small steps.
_PPO_HPARAMS = {
    "horizon": 512.0,
    "target_kl": 0.5,
    "learning_rate": 1e-2,
    "value_clip": 0.02,
    "objective": Clip(clip=jnp.float32(0.02)),
}
_PPO_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_epochs": 3,
    "num_minibatches": 4,
    "normalize_advantage": "batch",
    "proximal": "ewma",
    "actor_lag": 1,
    "stop_at_target_kl": False,
    "clip_value": False,
    "schedule": "constant",
    "normalize_observations": True,
    "normalize_rewards": True,
    "reset": "pooled",
    "reset_size": 2,
    "network": NetworkConfig(hidden=(8,), activation="relu"),
}
_PBT_RANGES = {"learning_rate": Range(1e-3, 1e-1), "objective.clip": Range(0.01, 0.4)}
_CPU = {"matmul_precision": "one precision only on a CPU"}
_DIAGNOSTICS = {"diagnostics": "only adds metrics"}
_PLAIN = {
    **_CPU,
    **_DIAGNOSTICS,
    "proximal_decay": "only with proximal = ewma",
    "advantage_decay": "only with normalize_advantage = ewma",
}


def _trpo(env: str, **network: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 4,
        "num_steps": 8,
        "num_cg_steps": 4,
        "num_backtracks": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "network": NetworkConfig(hidden=(8,), **network),
    }
    return lambda **config: trpo.trpo(jaxrl.make_env(env), config=trpo.Config(**{**tiny, **config}))


# On Pendulum the quadratic model is wrong in a region of this size, so that the line search has work to do.
_TRPO_HPARAMS = {"max_kl": 0.3}
_WHOLE_STEP = {**_CPU, **_DIAGNOSTICS, "backtrack_factor": "the whole step is good; trpo-continuous shortens it"}
_TRPO_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_cg_steps": 1,
    "line_search": False,
    "num_epochs": 3,
    "num_minibatches": 4,
    "normalize_observations": True,
    "normalize_rewards": True,
    "reset": "pooled",
    "reset_size": 2,
    "network": NetworkConfig(hidden=(8,), activation="relu"),
}


def _streaming(module: Any, env: str, **tiny: Any) -> Callable[..., Algorithm]:
    """An algorithm of one environment; its factory has the name of its module."""
    name = module.__name__.rpartition(".")[2]
    tiny = {"num_steps": 16, "network": StreamingConfig(hidden=(8,)), **tiny}
    return lambda **config: getattr(module, name)(jaxrl.make_env(env), module.Config(**{**tiny, **config}))


_UNSCALED = {"normalize_observations": False, "normalize_rewards": False}
_STREAM_OPTIONS = {
    "num_steps": 8,
    "optimizer": "adaptive_obgd",
    "normalize_observations": True,
    "normalize_rewards": True,
    "reset": "cached",
    "network": StreamingConfig(hidden=(8,), weight_norm=True),
}
# A rate so small that the bound of ObGD is reached by some steps only.
_STREAM_HPARAMS = {"learning_rate": 0.05}
_STREAM_Q_HPARAMS = {
    **_STREAM_HPARAMS,
    "epsilon_start": 0.9,
    "epsilon_end": 0.5,
    "epsilon_fraction": 0.3,
    "horizon": 60,
}
_STREAM_INERT = {
    **_CPU,
    "reset_size": "the law asks with pooled resets, which one environment has not; see test_streaming.py",
}
_SLOW = {"env.max_speed": "not reached in so few transitions"}
_NO_BETA2 = {"beta2": "only with adaptive_obgd or adam"}


def _ccn(**changes: Any) -> Callable[..., Algorithm]:
    tiny = {"num_steps": 16, "columns": ColumnarConfig(2, 2, 0.1), **changes}
    return lambda **config: ccn.ccn(jaxrl.make_env("probe/Credit"), ccn.Config(**{**tiny, **config}))


# The second stage begins within the first step of the algorithm.
_CCN_HPARAMS = {"columns": columnar.rates(steps_per_stage=10.0, decay=0.9)}


def _props(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 4,
        "num_steps": 8,
        "num_behavior_updates": 2,
        "num_behavior_epochs": 2,
        "num_behavior_minibatches": 2,
        "num_epochs": 2,
        "num_minibatches": 2,
        "schedule": "linear",
        "network": NetworkConfig(hidden=(8,)),
        **changes,
    }
    return lambda **config: props.props(jaxrl.make_env(env), config=props.Config(**{**tiny, **config}))


# Narrow clips and a small divergence of the behavior policy, so that each is reached within three small steps.
_PROPS_HPARAMS = {
    "horizon": 512.0,
    "target_kl": 0.5,
    "learning_rate": 1e-2,
    "objective": Clip(clip=jnp.float32(0.02)),
    "behavior_learning_rate": 1e-2,
    "behavior_clip": 0.05,
    "behavior_target_kl": 1e-3,
}
_PROPS_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_rollouts": 3,
    "num_epochs": 3,
    "num_minibatches": 4,
    "schedule": "constant",
    "normalize_observations": True,
    "normalize_rewards": True,
    "reset": "pooled",
    "reset_size": 2,
    "network": NetworkConfig(hidden=(8,), activation="relu"),
}
_PROPS_BEHAVIOR = {"num_behavior_updates": 4, "num_behavior_epochs": 3, "num_behavior_minibatches": 4}
_PROPS_INERT = {
    **_CPU,
    "num_error_epochs": "measures, see test_props.py",
    "error_learning_rate": "measures, see test_props.py",
}
_PROPS_SAME_ACTIONS = {
    f"behavior_{name}": "too small a change to turn one of so few discrete actions"
    for name in ("learning_rate", "clip", "kl_coef", "target_kl")
}


def _reppo(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 4,
        "num_steps": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "num_bins": 11,
        "schedule": "linear",
        "network": CriticConfig(actor_hidden=(8,), features=(8, 8), head_hidden=(8,)),
        **changes,
    }
    return lambda **config: reppo.reppo(jaxrl.make_env(env), config=reppo.Config(**{**tiny, **config}))


# A bound so narrow that some samples are within it and some beyond, and a support that cuts some targets.
_REPPO_HPARAMS = {
    "horizon": 512.0,
    "learning_rate": 1e-2,
    "kl_bound": 1e-2,
    "initial_kl_coef": 1.0,
    "initial_temperature": 0.1,
    "value_min": -20.0,
    "value_max": 5.0,
}
_REPPO_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_epochs": 3,
    "num_minibatches": 4,
    "critic": "two_hot",
    "num_bins": 13,
    "num_action_samples": 3,
    "self_prediction": True,
    "constraint": "penalty",
    "schedule": "constant",
    "normalize_observations": False,
    "normalize_rewards": True,
    "network": CriticConfig(actor_hidden=(16,), features=(8, 8), head_hidden=(8,)),
}
_NO_RESETS = dict.fromkeys(("reset", "reset_size"), "episodes of Pendulum are longer; reppo-one-step has them")


def _harpg(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {"num_envs": 4, "num_hessian_envs": 2, "num_steps": 8, "num_value_updates": 2}
    tiny |= {"network": NetworkConfig(hidden=(8,)), **changes}
    return lambda **config: harpg.harpg(jaxrl.make_env(env), config=harpg.Config(**{**tiny, **config}))


_HARPG_OPTIONS = {
    "num_envs": 8,
    "num_hessian_envs": 0,
    "num_steps": 16,
    "normalize": False,
    "baseline": "none",
    "discount_credit": False,
    "num_value_updates": 3,
    "network": NetworkConfig(hidden=(8,), activation="relu"),
}


def _hnpg(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 4,
        "num_steps": 8,
        "num_evaluations": 2,
        "num_updates": 2,
        "batch_size": 8,
        "num_action_samples": 2,
        "num_cg_steps": 4,
        "network": ControlConfig(hidden=(8,), num_critics=1, activation="tanh"),
        **changes,
    }
    return lambda **config: hnpg.hnpg(jaxrl.make_env(env), hnpg.Config(**{**tiny, **config}))


_CREDIT = jaxrl.make_env("probe/Credit")


def _rows() -> buffers.BufferState:
    """A dataset for probe/Credit, of nothing that it would do."""
    draws = np.random.default_rng(0)
    obs, next_obs = draws.normal(size=(2, 12, *_CREDIT.observation_space.shape)).astype(np.float32)
    ends = draws.random((2, 12)) < 0.3
    reward, action = draws.normal(size=12), draws.integers(0, _CREDIT.action_space.n, 12).astype(np.int32)
    return datasets.dataset(buffers.Experience(obs, action, reward, ends[0], ends[1], next_obs))


_HNPG_OPTIONS = {
    "num_envs": 8,
    "num_steps": 16,
    "num_evaluations": 3,
    "num_updates": 3,
    "batch_size": 16,
    "num_cg_steps": 1,
    "reset": "pooled",
    "reset_size": 2,
    "network": ControlConfig(hidden=(8,), num_critics=2),
}
_HNPG_INERT = {
    **_CPU,
    "online_weight": "only if hybrid",
    "hybrid": "it needs a dataset; see test_hnpg.py",
    "memory": "see hnpg-recurrent",
    **dict.fromkeys(("memory_size", "length"), "only with a memory; see hnpg-recurrent"),
}


def _utilities(**config: Any) -> Algorithm:
    # Rollouts that go on after the end of an episode, in part.
    env = jaxrl.make_env("coverage/Cells", size=(2, 3), max_episode_steps=6, observe="cell")
    return utilities.utilities(env, config=utilities.Config(**{"num_envs": 4, "num_steps": 8, **config}))


def _mac(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {"num_envs": 4, "num_steps": 16, "max_level": 2, "network": NetworkConfig(hidden=(8,)), **changes}
    return lambda **config: mac.mac(jaxrl.make_env(env), config=mac.Config(**{**tiny, **config}))


def _lpg(rule: rules.Rule, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {"num_envs": 4, "num_steps": 8, "hidden": (8,), **changes}
    return lambda **config: lpg.lpg(jaxrl.make_env("probe/Credit"), rule, lpg.Config(**{**tiny, **config}))


def _rule_hparams(rule: rules.Rule) -> dict[str, Any]:
    return {"objective": _rule_weights(rule), "horizon": 512.0}


def _rule_weights(rule: Any) -> Any:
    # Positive weights, so that every unit is at work, and a finite horizon.
    draws = np.random.default_rng(0)
    shapes = jax.eval_shape(rule.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(draws.uniform(0.1, 0.6, leaf.shape), jnp.float32), shapes)


_LPG, _TA_LPG = rules.lpg(3, 4, 2), rules.lpg(3, 4, 2, "gru", progress=True)


_DISCO = disco_rules.rule(prediction_size=3, hidden=4, memory=3, embedding=2, channels=(3, 2), target_channels=(2,))


def _disco(**config: Any) -> Algorithm:
    tiny = {"num_envs": 4, "num_steps": 8, "hidden": (8,), "model_size": 4, "model_hidden": 4, "num_bins": 5}
    return disco.disco(jaxrl.make_env("probe/Credit"), _DISCO, disco.Config(**{**tiny, **config}))


def _first_action(batch: Any) -> Any:
    return 0.3 * (batch.action == 0)


_REWARD = rewards.blend(_CREDIT, _first_action, by_state=True, hidden=(3,), discount=0.8)


def _reward_learning(**config: Any) -> Algorithm:
    tiny = {"num_envs": 4, "num_steps": 3, "num_updates": 2, "num_terms": 2, "hidden": (6,)}
    config = {**tiny, **config}
    return reward_learning.reward_learning(_CREDIT, _REWARD, config=reward_learning.Config(**config))


def _bpg(env: str, **changes: Any) -> Callable[..., Algorithm]:
    # Standardized returns would not tell how large a reward is.
    tiny = {"num_envs": 4, "num_steps": 4, "standardize": False, "network": NetworkConfig(hidden=(8,)), **changes}
    return lambda **config: bpg.bpg(jaxrl.make_env(env), bpg.Config(**{**tiny, **config}))


def _dqn(components: dict[str, Any] | None = None, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 2,
        "num_steps": 2,
        "num_rounds": 2,
        "batch_size": 4,
        "capacity": 16,
        "num_warmup_steps": 4,
        "schedule": "linear",
        "network": QNetworkConfig(hidden=(8,)),
        **changes,
    }
    env = jaxrl.make_env("probe/Credit")
    return lambda **config: dqn.dqn(env, config=dqn.Config(**{**tiny, **config}), **(components or {}))


def _pqn(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 2,
        "num_steps": 4,
        "num_epochs": 2,
        "num_minibatches": 2,
        "network": QNetworkConfig(hidden=(8,)),
        **changes,
    }
    return lambda **config: pqn.pqn(jaxrl.make_env(env), config=pqn.Config(**{**tiny, **config}))


def _sqirl(**config: Any) -> Algorithm:
    tiny = {
        "num_envs": 8,
        "num_steps": 3,
        "depth": 2,
        "num_updates": 2,
        "batch_size": 8,
        "network": QNetworkConfig(hidden=(8,)),
    }
    return sqirl.sqirl(jaxrl.make_env("probe/Credit"), config=sqirl.Config(**{**tiny, **config}))


_DQN_HPARAMS = {
    "learning_rate": 1e-2,
    "epsilon_start": 0.9,
    "epsilon_end": 0.5,
    "epsilon_fraction": 0.25,
    "horizon": 40,
    "target_period": 2,
    "max_grad_norm": 0.1,
}


def _control(
    module: Any, env: str, components: dict[str, Any] | None = None, **changes: Any
) -> Callable[..., Algorithm]:
    """SAC or TD3; the factory has the name of its module."""
    tiny = {
        "num_envs": 2,
        "num_steps": 2,
        "num_rounds": 2,
        "policy_delay": 1,
        "batch_size": 4,
        "capacity": 16,
        "num_warmup_steps": 4,
        "schedule": "linear",
        "network": ControlConfig(hidden=(8,)),
        **changes,
    }
    factory = getattr(module, module.__name__.rpartition(".")[2])
    return lambda **config: factory(
        jaxrl.make_env(env), config=module.Config(**{**tiny, **config}), **(components or {})
    )


_CONTROL_HPARAMS = {
    "policy_learning_rate": 1e-2,
    "critic_learning_rate": 1e-2,
    "tau": 0.1,
    "max_grad_norm": 0.5,
    "horizon": 40,
}
_CONTROL_OPTIONS = {
    "num_envs": 4,
    "num_steps": 1,
    "num_updates": 2,
    "policy_delay": 2,
    "num_rounds": 3,
    "batch_size": 8,
    "capacity": 24,
    "num_warmup_steps": 2,
    "n_step": 2,
    "schedule": "constant",
    "normalize_observations": True,
    "network": ControlConfig(hidden=(8,), activation="tanh"),
}
_MPO_HPARAMS = {
    **{name: value for name, value in _CONTROL_HPARAMS.items() if name != "tau"},
    "dual_learning_rate": 1e-1,
    "target_period": 2,
    "epsilon": 1.0,
    "initial_temperature": 0.1,
    "initial_stddev_multiplier": 1.0,
}
_MRQ_HPARAMS = {
    **dict.fromkeys(("encoder_learning_rate", "value_learning_rate", "policy_learning_rate"), 1e-2),
    "replay": buffers.Coefficients(jnp.float32(0.6), jnp.float32(0.4), jnp.float32(0.9)),
    "reward_low": -3.0,
    "reward_high": 3.0,
    "policy_noise": 2.0,
    "noise_clip": 1.0,
    "least_priority": 5.0,
    "pre_activation_weight": 0.1,
    "max_grad_norm": 0.1,
    "horizon": 40,
}
_MRQ_OPTIONS = {
    "num_envs": 4,
    "num_steps": 1,
    "num_updates": 2,
    "num_rounds": 3,
    "batch_size": 8,
    "capacity": 24,
    "num_warmup_steps": 8,
    "n_step": 1,
    "length": 2,
    "schedule": "constant",
    "network": LatentConfig(6, 4, 6, 8, 5, activation="tanh"),
}
_NO_EXPECTILE = dict.fromkeys(("expectile", "expectile_fraction"), "only with annealed")
_NO_ENDS = dict.fromkeys(("reset", "reset_size"), "episodes of Pendulum are longer than these runs")


def _mrq(env: str, **changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 2,
        "num_steps": 2,
        "num_rounds": 2,
        "batch_size": 4,
        "capacity": 16,
        "num_warmup_steps": 4,
        "n_step": 2,
        "length": 3,
        "schedule": "linear",
        "network": LatentConfig(6, 4, 6, 8, 5),
        **changes,
    }
    return lambda **config: mrq.mrq(jaxrl.make_env(env), config=mrq.Config(**{**tiny, **config}))


def _cqn(**changes: Any) -> Callable[..., Algorithm]:
    tiny = {
        "num_envs": 2,
        "num_rounds": 3,
        "batch_size": 4,
        "capacity": 16,
        "num_warmup_steps": 4,
        "n_step": 2,
        "schedule": "linear",
        "network": CoarseConfig(num_levels=2, num_bins=3, num_atoms=5, num_features=4, hidden=(6,)),
        **changes,
    }
    return lambda **config: cqn.cqn(jaxrl.make_env("gymnax/Pendulum-v1"), config=cqn.Config(**{**tiny, **config}))


_CQN_HPARAMS = {
    "critic_learning_rate": 1e-2,
    "support": Support(jnp.float32(-30.0), jnp.float32(2.0)),
    "tau": 0.1,
    "noise_fraction": 0.8,
    "max_grad_norm": 0.01,
    "horizon": 40,
}


def _evolved(**config: Any) -> Algorithm:
    search = strategies.open_es(2, strategies.raw)
    name = "step_size"
    return evolve(_utilities(**config), search, name, log=(name,), num_steps=2, num_held_out=1, fitness=_value)


def _under_regret(**config: Any) -> Algorithm:
    search, name, agent = strategies.open_es(4, strategies.raw), "step_size", _utilities(**config)
    lives = {"num_steps": 2, "fitness": _value}
    course = levels.regret(agent, _slippery, num_levels=2, size=4, transform="proportional", **lives)
    return evolve(agent, search, name, log=(name,), num_held_out=1, common_keys="pairs", curriculum=course, **lives)


def _persistent(**config: Any) -> Algorithm:
    name = "step_size"
    lives = {"num_steps": 4, "truncation": 2, "num_pairs": 2, "num_held_out": 1}
    return persistent(_utilities(**config), name, log=(name,), fitness=_value, **lives)


def _slippery(key: jax.Array) -> Any:
    return _SLIPPERY.replace(slip=jax.random.uniform(key, maxval=0.5))


def _value(state: Any, metrics: dict[str, Any]) -> Any:
    """Smooth: with returns a rounding error could turn one generation into another."""
    return metrics["utility/value"][-1]


_SLIPPERY = coverage.make("Cells", size=(2, 3), max_episode_steps=6).default_params().replace(slip=jnp.float32(0.4))
_UTILITIES_LEAVES = tuple(trees.named_leaves(_utilities().hyperparams()))
_ENV_LEAVES = tuple(name for name in _UTILITIES_LEAVES if name.startswith("env."))

CASES = {
    "ppo-discrete": Case("ppo", _ppo("probe/Credit"), _PPO_HPARAMS, _PPO_OPTIONS, _PLAIN),
    "ppo-continuous": Case(
        "ppo",
        lambda **config: _ppo("gymnax/Pendulum-v1")(
            **{"normalize_observations": True, "normalize_rewards": True, **config}
        ),
        _PPO_HPARAMS,
        {"normalize_observations": False, "normalize_rewards": False},
        _PLAIN,
    ),
    "ppo-recurrent": Case("ppo", _ppo("probe/Memory", memory="gru", memory_size=8), _PPO_HPARAMS, {}, _PLAIN),
    "ppo-decoupled": Case(
        "ppo",
        _ppo(
            "probe/Credit",
            {
                "objective": objectives.vmpo(),
                "estimator": estimators.vtrace(),
                "proximal": "ewma",
                "normalize_advantage": "ewma",
                "actor_lag": 2,
            },
        ),
        {name: value for name, value in _PPO_HPARAMS.items() if name != "objective"},
        {},
        _CPU,
    ),
    "ppo-learned-optimizer": Case(
        "ppo",
        _ppo("probe/Credit", {"stop_at_target_kl": False, "optimizer": open_rule(4, 3)}),
        # Its steps are of 10⁻³ times its outputs, so weights are large.
        {
            "horizon": 512.0,
            "max_grad_norm": 0.5,
            "value_clip": 0.02,
            "objective": Clip(clip=jnp.float32(1e-3)),
            "optimizer": jax.tree.map(lambda x: 20.0 * (x - 0.3), _rule_weights(open_rule(4, 3))),
        },
        {},
        {
            **_PLAIN,
            "learning_rate": "the rule takes its place",
            "target_kl": "only with stop_at_target_kl",
        },
        slow=True,
    ),
    "trpo-discrete": Case("trpo", _trpo("probe/Credit"), {"max_kl": 0.05}, _TRPO_OPTIONS, _WHOLE_STEP),
    "trpo-continuous": Case("trpo", _trpo("gymnax/Pendulum-v1"), _TRPO_HPARAMS, {"num_backtracks": 1}, _CPU),
    "trpo-recurrent": Case(
        "trpo", _trpo("probe/Memory", memory="gru", memory_size=8), {"max_kl": 0.05}, {}, _WHOLE_STEP
    ),
    "hnpg": Case(
        "hnpg",
        _hnpg("probe/Credit"),
        {"max_kl": 0.05, "max_grad_norm": 1.0},
        _HNPG_OPTIONS,
        {
            **_HNPG_INERT,
            "backtrack_factor": "the whole step is good; hnpg-continuous shortens it",
            "num_action_samples": "not with discrete actions",
        },
    ),
    "hnpg-hybrid": Case(
        "hnpg",
        _hnpg("probe/Credit", hybrid=True),
        {"max_kl": 0.05, "max_grad_norm": 1.0, "replay": _rows()},
        {},
        {
            **_CPU,
            **dict.fromkeys(
                ("replay.items.truncated", "replay.pointer"), "of single steps in a full buffer; see test_datasets.py"
            ),
            "num_action_samples": "not with discrete actions",
            "backtrack_factor": "the whole step is good; hnpg-continuous shortens it",
        },
        slow=True,
    ),
    "hnpg-recurrent-hybrid": Case(
        "hnpg",
        _hnpg("probe/Credit", hybrid=True, memory="lstm", memory_size=4, length=4),
        {"max_kl": 0.05, "max_grad_norm": 1.0, "replay": _rows()},
        {},
        {
            **_CPU,
            "replay.pointer": "of a full buffer",
            "num_action_samples": "not with discrete actions",
            "backtrack_factor": "the whole step is good; hnpg-continuous shortens it",
        },
        slow=True,
    ),
    "hnpg-recurrent": Case(
        "hnpg",
        _hnpg("probe/Memory", memory="gru", memory_size=4, length=4),
        {"max_kl": 0.05, "max_grad_norm": 1.0},
        {"memory_size": 8, "length": 2},
        {
            **_HNPG_INERT,
            "backtrack_factor": "the whole step is good; hnpg-continuous shortens it",
            "num_action_samples": "not with discrete actions",
        },
        slow=True,
    ),
    "hnpg-continuous": Case(
        "hnpg",
        _hnpg("gymnax/Pendulum-v1"),
        {"max_kl": 1.0},
        {"num_action_samples": 3, "num_backtracks": 1, "line_search": False},
        {**_HNPG_INERT, **_SLOW},
        slow=True,
    ),
    "ppo-population": Case(
        "ppo",
        lambda **config: jaxrl.population(_ppo("probe/Credit")(**config), 3),
        _PPO_HPARAMS,
        {},
        _PLAIN,
    ),
    "ppo-pbt-population": Case(
        "ppo",
        lambda **config: pbt(_ppo("probe/Credit")(**config), 3, _PBT_RANGES, interval=2, truncation=0.34),
        _PPO_HPARAMS,
        {},
        _PLAIN,
    ),
    "props-discrete": Case(
        "props", _props("probe/Credit"), _PROPS_HPARAMS, _PROPS_OPTIONS, {**_PROPS_INERT, **_PROPS_SAME_ACTIONS}
    ),
    "props-recurrent": Case(
        "props",
        _props("probe/Memory", network=_REMEMBERING),
        _PROPS_HPARAMS,
        {},
        {**_PROPS_INERT, **_PROPS_SAME_ACTIONS},
        slow=True,
    ),
    "props-continuous": Case(
        "props",
        _props("gymnax/Pendulum-v1", normalize_observations=True, normalize_rewards=True),
        _PROPS_HPARAMS,
        _PROPS_BEHAVIOR,
        {**_PROPS_INERT, **_SLOW},
    ),
    "stream_q": Case(
        "stream_q",
        _streaming(stream_q, "probe/Credit", **_UNSCALED),
        _STREAM_Q_HPARAMS,
        {**_STREAM_OPTIONS, "target": "sarsa", "cut": "after"},
        {**_STREAM_INERT, **_NO_BETA2},
    ),
    "stream_q-sarsa": Case(
        "stream_q",
        _streaming(
            stream_q,
            "probe/Credit",
            **{**_UNSCALED, "normalize_observations": True, "target": "sarsa"},
            optimizer="adaptive_obgd",
        ),
        _STREAM_Q_HPARAMS,
        {},
        _CPU,
    ),
    "stream_q-columns": Case(
        "stream_q",
        _streaming(stream_q, "probe/Memory", **_UNSCALED, columns=ColumnarConfig(2, 2, 0.5)),
        {**_STREAM_Q_HPARAMS, **_CCN_HPARAMS},
        {"columns": ColumnarConfig(2, 3, 0.5)},
        {**_STREAM_INERT, **_NO_BETA2},
    ),
    "stream_ac-discrete": Case(
        "stream_ac",
        _streaming(stream_ac, "probe/Credit", num_steps=6, **_UNSCALED),
        _STREAM_HPARAMS,
        _STREAM_OPTIONS,
        {**_STREAM_INERT, **_NO_BETA2},
    ),
    "stream_ac-continuous": Case(
        "stream_ac",
        _streaming(stream_ac, "gymnax/Pendulum-v1", num_steps=8, optimizer="adaptive_obgd"),
        {"learning_rate": 0.01},
        {"normalize_observations": False, "normalize_rewards": False},
        {**_CPU, **_SLOW},
    ),
    "harpg-discrete": Case("harpg", _harpg("probe/Credit"), {}, _HARPG_OPTIONS, _CPU),
    "harpg-recurrent": Case("harpg", _harpg("probe/Memory", network=_REMEMBERING), {}, {}, _CPU, slow=True),
    "harpg-continuous": Case(
        "harpg", _harpg("gymnax/Pendulum-v1", normalize=False), {"step_size": 1e-3}, {}, {**_CPU, **_SLOW}
    ),
    "utilities": Case(
        "utilities",
        _utilities,
        {"env": _SLIPPERY},
        {"num_envs": 8, "num_steps": 4, "variance_reduction": False},
        {"env.modular": "rewards are not read", "env.task.weight": "rewards are not read"},
    ),
    "utilities-evolved-population": Case(
        "utilities",
        _evolved,
        {"env": _SLIPPERY},
        {},
        {"inner.env.modular": "rewards are not read", "inner.env.task.weight": "rewards are not read"},
    ),
    "utilities-regret-population": Case(
        "utilities",
        _under_regret,
        {"env": _SLIPPERY},
        {},
        {
            **{f"inner.{name}": "levels take its place" for name in _ENV_LEAVES},
            **{
                f"curriculum.{name}": "only the order of two regrets is read"
                for name in ("temperature", *(f"antagonist.{leaf}" for leaf in _UTILITIES_LEAVES))
            },
        },
        slow=True,
    ),
    "utilities-persistent-population": Case(
        "utilities",
        _persistent,
        {"env": _SLIPPERY, "meta_max_grad_norm": 1e-3},
        {},
        {"inner.env.modular": "rewards are not read", "inner.env.task.weight": "rewards are not read"},
        slow=True,
    ),
    "stream_td": Case(
        "stream_td",
        _streaming(stream_td, "probe/Credit", num_steps=6, **_UNSCALED),
        _STREAM_HPARAMS,
        _STREAM_OPTIONS,
        {**_STREAM_INERT, **_NO_BETA2},
    ),
    "ccn": Case(
        "ccn",
        _ccn(),
        _CCN_HPARAMS,
        {
            "num_steps": 8,
            "optimizer": "adam",
            "reset": "cached",
            "columns": ColumnarConfig(2, 3, 0.1),
        },
        {**_STREAM_INERT, "kappa": "only with obgd or adaptive_obgd"},
    ),
    "ccn-obgd": Case("ccn", _ccn(optimizer="obgd"), {**_CCN_HPARAMS, "learning_rate": 1.0}, {}, {**_CPU, **_NO_BETA2}),
    "mac-recurrent": Case("mac", _mac("probe/Memory", network=_REMEMBERING), {"reset_cost": 1.0}, {}, _CPU, slow=True),
    "mac": Case(
        "mac",
        _mac("probe/Credit"),
        {"reset_cost": 1.0},
        {
            "num_envs": 8,
            "num_steps": 24,
            "max_level": 3,
            "lengths": "fixed",
            "reset": "pooled",
            "reset_size": 2,
            "network": NetworkConfig(hidden=(8,), activation="relu"),
        },
        _CPU,
    ),
    "lpg": Case(
        "lpg",
        _lpg(_TA_LPG),
        # Bounds that some gradients exceed and others do not.
        _rule_hparams(_TA_LPG) | {"learning_rate": 0.01, "prediction_learning_rate": 0.01, "max_grad_norm": 0.05},
        {
            "num_envs": 8,
            "num_steps": 16,
            "hidden": (6,),
            "activation": "relu",
            "optimizer": "sgd",
            "reset": "pooled",
            "reset_size": 2,
        },
        {**_CPU, "tabular": "see lpg-tabular"},
        slow=True,
    ),
    "lpg-tabular": Case(
        "lpg",
        _lpg(_LPG, tabular=True, optimizer="sgd"),
        _rule_hparams(_LPG) | {"learning_rate": 1.0, "prediction_learning_rate": 1.0, "max_grad_norm": 0.08},
        {},
        {"horizon": "the rule does not see it", "hidden": "tables", "activation": "tables"},
    ),
    "disco": Case(
        "disco",
        _disco,
        {"objective": _rule_weights(_DISCO), "learning_rate": 0.01, "max_update": 0.7},
        {
            "num_envs": 8,
            "num_steps": 16,
            "hidden": (6,),
            "model_size": 3,
            "model_hidden": 3,
            "num_bins": 7,
            "activation": "tanh",
            "reset": "pooled",
            "reset_size": 2,
        },
        _CPU,
        slow=True,
    ),
    "reward_learning": Case(
        "reward_learning",
        _reward_learning,
        {
            "reward": _rule_weights(_REWARD),
            "discount_cost": 0.1,
            "max_grad_norm": 0.05,
            "gamma": 0.9,
            "entropy_coef": 0.1,
            "decay": 0.1,
        },
        {
            "num_envs": 8,
            "num_steps": 1,
            "num_updates": 1,
            "solver": "conjugate",
            "num_terms": 3,
            "hidden": (4,),
            "activation": "relu",
        },
        {**_CPU, "tabular": "another structure of parameters; see test_rewards.py"},
        slow=True,
    ),
    "bpg": Case(
        "bpg",
        _bpg("probe/Credit"),
        {"gamma": 0.9, "learning_rate": 0.03},
        {
            "num_envs": 8,
            "num_steps": 1,
            "model": "returns_times_scores",
            "natural": False,
            "fisher": "policy",
            "standardize": True,
            "network": NetworkConfig(hidden=(8,), layer_norm=True),
        },
        _CPU,
    ),
    "bpg-policy": Case(
        "bpg", _bpg("probe/Credit", fisher="policy"), {"gamma": 0.9, "learning_rate": 0.03}, {"num_cg_steps": 1}, _CPU
    ),
    "bpg-recurrent": Case(
        "bpg", _bpg("probe/Memory", network=_REMEMBERING), {"gamma": 0.9, "learning_rate": 0.03}, {}, _CPU, slow=True
    ),
    "avg": Case(
        "avg",
        _streaming(avg, "gymnax/Pendulum-v1", num_steps=8),
        {"beta1": 0.5},
        {
            "num_steps": 16,
            "normalize_observations": False,
            "scale_errors": False,
            "network": StreamingConfig(hidden=(8,), layer_norm=False, unit_features=True),
        },
        {**_CPU, **_SLOW},
    ),
    "avg-one-step": Case(
        "avg",
        _streaming(avg, "probe/ContinuousObservation"),
        {"beta1": 0.5},
        {"reset": "cached"},
        {**_STREAM_INERT, "gamma": "every step terminates"},
    ),
    "reppo": Case(
        "reppo",
        _reppo("gymnax/Pendulum-v1", self_prediction=False),
        _REPPO_HPARAMS,
        _REPPO_OPTIONS,
        {**_CPU, **_SLOW, **_NO_RESETS, "auxiliary_coef": "only with self_prediction"},
    ),
    "reppo-self-prediction": Case(
        "reppo", _reppo("gymnax/Pendulum-v1"), _REPPO_HPARAMS, {}, {**_CPU, **_SLOW}, slow=True
    ),
    "reppo-recurrent": Case(
        "reppo",
        _reppo(
            "gymnax/Pendulum-v1",
            network=CriticConfig(actor_hidden=(8,), features=(8, 8), head_hidden=(8,), memory="gru", memory_size=4),
        ),
        _REPPO_HPARAMS,
        {},
        {**_CPU, **_SLOW},
        slow=True,
    ),
    "reppo-one-step": Case(
        "reppo",
        _reppo("probe/ContinuousObservation", self_prediction=False),
        {**_REPPO_HPARAMS, "value_min": -2.0, "value_max": 0.5},
        {"reset": "pooled", "reset_size": 2},
        {
            **_CPU,
            "gamma": "every step terminates",
            "trace_lambda": "every step terminates",
            "auxiliary_coef": "only with self_prediction",
        },
        slow=True,
    ),
    "dqn": Case(
        "dqn",
        _dqn(),
        _DQN_HPARAMS,
        {
            "num_envs": 4,
            "num_steps": 1,
            "num_updates": 2,
            "num_rounds": 3,
            "batch_size": 8,
            "capacity": 24,
            "num_warmup_steps": 2,
            "n_step": 2,
            "num_links": 2,
            "prioritized": True,
            "schedule": "constant",
            "reset": "pooled",
            "reset_size": 2,
            "network": QNetworkConfig(hidden=(8,), activation="tanh"),
        },
        {**_CPU, "target": "without one two leaves have no effect and may not be set; see test_dqn.py"},
    ),
    "dqn-rainbow": Case(
        "dqn",
        _dqn(
            {"head": values.categorical(5, low=-1.0, high=2.0), "backup": values.double()},
            prioritized=True,
            n_step=2,
            network=QNetworkConfig(hidden=(8,), dueling=True, noisy=True),
        ),
        {**_DQN_HPARAMS, "head": values.Support(jnp.float32(-1.0), jnp.float32(1.5))},
        {},
        _CPU,
    ),
    "dqn-implicit": Case(
        "dqn",
        _dqn({"head": values.implicit_quantile(2, 3, 4, kappa=0.1), "backup": values.munchausen(temperature=0.5)}),
        {**_DQN_HPARAMS, "backup": values.Munchausen(jnp.float32(0.9), jnp.float32(0.5), jnp.float32(-0.3))},
        {},
        _CPU,
    ),
    "dqn-chain": Case(
        "dqn",
        _dqn({"head": values.mapped(least=0.3, greatest=0.4, share=0.5)}, num_links=3, num_updates=2),
        {**_DQN_HPARAMS, "target_period": 4, "sync_period": 2},
        {},
        _CPU,
        slow=True,
    ),
    "dqn-sequences": Case(
        "dqn",
        _dqn(
            {"backup": values.annealed(values.maximum(), values.soft(0.5), 0.3)},
            prioritized=True,
            burn_in=1,
            length=2,
            network=QNetworkConfig(hidden=(8, 8), memory="gru", memory_size=4),
        ),
        _DQN_HPARAMS,
        {"burn_in": 0, "length": 1},
        _CPU,
    ),
    "dqn-graph": Case(
        "dqn",
        _dqn({"head": values.graph(expressions.DQN_CLIPPED, 12)}),
        _DQN_HPARAMS,
        {},
        _CPU,
        slow=True,
    ),
    "dqn-projections": Case(
        "dqn",
        _dqn(
            {"head": values.projection_ensemble(3, -1.0, 2.0), "backup": values.double()},
            num_envs=8,
            batch_size=32,
            capacity=64,
            network=QNetworkConfig(hidden=(8,), num_members=2),
        ),
        {**_DQN_HPARAMS, "horizon": 160},
        {},
        {
            **_CPU,
            "head.bonus_support.low": "it is 0, and so is half of it",
            "head.beta": "it decides which action is the best, which in so few steps changes nothing",
        },
        slow=True,
    ),
    "sqirl": Case(
        "sqirl",
        _sqirl,
        {"epsilon": 0.9, "gamma": 0.9, "max_grad_norm": 0.1},
        {
            "num_envs": 4,
            "num_steps": 2,
            "depth": 1,
            "num_updates": 3,
            "batch_size": 4,
            "pooled": False,
            "network": QNetworkConfig(hidden=(8,), activation="tanh"),
        },
        _CPU,
        slow=True,
    ),
    "pqn": Case(
        "pqn",
        _pqn("probe/Credit"),
        {"epsilon_end": 0.1, "epsilon_fraction": 0.5, "horizon": 40, "max_grad_norm": 0.1},
        {
            "num_envs": 4,
            "num_steps": 8,
            "num_epochs": 3,
            "num_minibatches": 4,
            "schedule": "constant",
            "reset": "pooled",
            "reset_size": 2,
            "network": QNetworkConfig(hidden=(8,), activation="tanh"),
        },
        _CPU,
    ),
    "pqn-recurrent": Case(
        "pqn",
        _pqn("probe/Memory", network=QNetworkConfig(hidden=(8, 8), memory="gru", memory_size=4)),
        {"epsilon_end": 0.1, "epsilon_fraction": 0.5, "horizon": 40, "max_grad_norm": 0.1},
        {},
        _CPU,
        slow=True,
    ),
    "sac": Case(
        "sac",
        _control(sac, "gymnax/Pendulum-v1"),
        {**_CONTROL_HPARAMS, "temperature_learning_rate": 1e-2},
        {
            **_CONTROL_OPTIONS,
            "reference": "previous",
            "prioritized": True,
            "annealed": True,
            "normalize_rewards": True,
        },
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            **_NO_EXPECTILE,
            "kl_coef": "only with a reference",
            "reference_period": "only with a reference",
            "return_bound": "only with normalize_rewards",
            "learn_temperature": "without it two leaves may not be set; see test_off_policy.py",
            "offline": "needs a dataset, see test_datasets.py",
            "target": "without one tau has no effect and may not be set; see test_off_policy.py",
        },
    ),
    "sac-mirror": Case(
        "sac",
        _control(
            sac,
            "gymnax/Pendulum-v1",
            {"aggregate": ensembles.minimum(climb="first")},
            reference="previous",
            learn_temperature=False,
            prioritized=True,
            annealed=True,
        ),
        {**_CONTROL_HPARAMS, "kl_coef": 1.0, "reference_period": 4, "expectile_fraction": 0.5},
        {},
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            "temperature_learning_rate": "the temperature stays",
            "target_entropy": "the temperature stays",
            "return_bound": "only with normalize_rewards",
        },
        slow=True,
    ),
    "sac-spheres": Case(
        "sac",
        _control(
            sac,
            "gymnax/Pendulum-v1",
            {"optimizer": optimizers.on_spheres()},
            normalize_observations=True,
            normalize_rewards=True,
            network=ControlConfig(hidden=(8,), block="hyperspherical", num_bins=11),
        ),
        # So narrow a bound that it decides, not the deviation.
        {**_CONTROL_HPARAMS, "temperature_learning_rate": 1e-2, "return_bound": 0.5},
        {},
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            **_NO_EXPECTILE,
            "kl_coef": "only with a reference",
            "reference_period": "only with a reference",
        },
        slow=True,
    ),
    "td3": Case(
        "td3",
        _control(td3, "gymnax/Pendulum-v1", exploration="per_episode"),
        {**_CONTROL_HPARAMS, "policy_noise": 0.8},
        {**_CONTROL_OPTIONS, "target_policy": False, "prioritized": True, "annealed": True, "regularizer": "beer"},
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            **_NO_EXPECTILE,
            "regularizer_coef": "only with a regularizer",
            "exploration": "without episodes' own the least noise has no effect and may not be set",
        },
        slow=True,
    ),
    "td3-beer": Case(
        "td3",
        _control(td3, "gymnax/Pendulum-v1", prioritized=True, annealed=True, regularizer="beer"),
        {**_CONTROL_HPARAMS, "policy_noise": 0.8, "expectile_fraction": 0.5, "regularizer_coef": 0.1},
        {},
        {**_CPU, **_SLOW, **_NO_ENDS, "least_exploration_noise": "all have the same noise"},
        slow=True,
    ),
    "td3-categorical": Case(
        "td3",
        _control(td3, "gymnax/Pendulum-v1", network=ControlConfig(hidden=(8,), num_bins=11)),
        {**_CONTROL_HPARAMS, "policy_noise": 0.8},
        {},
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            **_NO_EXPECTILE,
            "regularizer_coef": "only with a regularizer",
            "least_exploration_noise": "all have the same noise",
        },
        slow=True,
    ),
    "mrq": Case(
        "mrq",
        _mrq("gymnax/Pendulum-v1"),
        _MRQ_HPARAMS,
        _MRQ_OPTIONS,
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            "termination_weight": "nothing terminates; mrq-discrete has it",
            "gumbel_temperature": "for discrete actions",
            "prioritized": "without it least_priority has no effect and may not be set",
        },
        slow=True,
    ),
    "mrq-discrete": Case(
        "mrq",
        _mrq("probe/Credit", n_step=1, batch_size=8),
        {**_MRQ_HPARAMS, "policy_noise": 1.0, "least_priority": 1.0, "gumbel_temperature": 1.0},
        {"reset": "pooled", "reset_size": 2},
        {
            **_CPU,
            **dict.fromkeys(
                ("policy_noise", "noise_clip"), "too small a change to turn one of so few actions; mrq has them"
            ),
        },
        slow=True,
    ),
    "cqn": Case(
        "cqn",
        _cqn(),
        _CQN_HPARAMS,
        {
            **{name: value for name, value in _CONTROL_OPTIONS.items() if name != "policy_delay"},
            "n_step": 1,
            "length": 2,
            "network": CoarseConfig(num_levels=3, num_bins=3, num_atoms=5, num_features=4, hidden=(6,)),
        },
        {**_CPU, **_SLOW, **_NO_ENDS, "ensemble_gain": "only with several actions in a row"},
        slow=True,
    ),
    "cqn-sequences": Case(
        "cqn",
        _cqn(length=3),
        {**_CQN_HPARAMS, "ensemble_gain": 0.5},
        {},
        {**_CPU, **_SLOW, **_NO_ENDS},
        slow=True,
    ),
    "discrete_sac": Case(
        "discrete_sac",
        _control(discrete_sac, "probe/Credit"),
        {**_CONTROL_HPARAMS, "temperature_learning_rate": 1e-2},
        {**_CONTROL_OPTIONS, "reset": "pooled", "reset_size": 2},
        {**_CPU, **_SLOW},
        slow=True,
    ),
    "mpo-retrace": Case(
        "mpo",
        _control(mpo, "gymnax/Pendulum-v1", num_actions=3, n_step=3, returns="retrace"),
        {**_MPO_HPARAMS, "trace_lambda": 0.9},
        {},
        {**_CPU, **_SLOW, **_NO_ENDS},
        slow=True,
    ),
    "mpo": Case(
        "mpo",
        _control(mpo, "gymnax/Pendulum-v1", num_actions=3, n_step=2),
        _MPO_HPARAMS,
        {**_CONTROL_OPTIONS, "num_actions": 4, "n_step": 1, "returns": "retrace"},
        {
            **_CPU,
            **_SLOW,
            **_NO_ENDS,
            "trace_lambda": "only with retrace",
            "penalize_bounds": "without it epsilon_penalty has no effect and may not be set; see test_off_policy.py",
        },
        slow=True,
    ),
}

# Second rows of algorithms whose first one the ordinary tests have, and those that compile for longest.
_SECOND = (
    "avg-one-step",
    "bpg-policy",
    "ccn-obgd",
    "dqn-implicit",
    "dqn-rainbow",
    "dqn-sequences",
    "harpg-continuous",
    "harpg-discrete",
    "ppo-decoupled",
    "ppo-pbt-population",
    "props-continuous",
    "props-discrete",
    "reppo",
    "stream_ac-discrete",
    "stream_q-columns",
    "stream_q-sarsa",
    "trpo-continuous",
    "trpo-recurrent",
    "utilities-evolved-population",
)
CASES.update({name: dataclasses.replace(CASES[name], slow=True) for name in _SECOND})

VARIANTS = [name for name, entry in ALGORITHMS.items() if entry.base]


def is_continuous(name: str) -> bool:
    """Whether a variant is of an algorithm for a `Box`."""
    return ALGORITHMS[name].base in ("sac", "td3", "cqn")


def tiny_variant(name: str) -> dict[str, Any]:
    """Fields of its config that make a variant small; the others are its own."""
    network = dataclasses.replace(ALGORITHMS[name].default_config.network, hidden=(8,))
    if hasattr(network, "critic_hidden"):
        network = dataclasses.replace(network, critic_hidden=())
    tiny = {"num_envs": 4, "num_steps": 8, "network": network}
    return {**tiny, "batch_size": 16, "capacity": 8192, "num_rounds": 12} if is_continuous(name) else tiny


def _of_variant(name: str) -> Case:
    def make(**config: Any) -> Algorithm:
        env = jaxrl.make_env("gymnax/Pendulum-v1" if is_continuous(name) else "probe/Credit")
        return jaxrl.make(name, env, **{**tiny_variant(name), **config})

    return Case(name, make, {"horizon": 1000.0}, {}, {}, slow=True)


# A variant has no code of its own, so these are slow but for `test_variants_learn_something_with_their_own_defaults`,
# and law 6 asks of each leaf in the rows of what it is a variant of.
VARIANT_CASES = {name: _of_variant(name) for name in VARIANTS}

# Of `jaxrl.meta`, which the registry does not have.
_UNNAMED = {"reward_learning"}
assert {case.algorithm for case in CASES.values()} == set(ALGORITHMS) - set(VARIANTS) | _UNNAMED, (
    "every algorithm needs a row"
)
