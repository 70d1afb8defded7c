"""Algorithms by name, for the command line, the sweeps and the contract tests.

A *variant* is an algorithm with some of its components chosen: an objective, an estimator, an optimizer, a config,
hyperparameters. It has a name and its own defaults, and no code.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import acting, buffers, ensembles, estimators, objectives, values
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
from jaxrl.names import unknown
from jaxrl.networks import ActorCritic
from jaxrl.networks.control import ControlConfig, ControlNetworks
from jaxrl.networks.q_network import QNetwork, QNetworkConfig
from jaxrl.ops.optimizers import adam_with, gradient_transport, on_spheres, rmsprop
from jaxrl.types import Algorithm, Env, memoize


@dataclasses.dataclass(frozen=True)
class Entry:
    """One algorithm.

    Attributes:
      summary: one line for people.
      factory: `(env, network=..., config=...) -> Algorithm`; of a variant further components are those of its base, in
        place of its own.
      default_config: its structure unless changed, a frozen dataclass.
      hyperparams: the record of its data.
      base: the algorithm that it is a variant of, or None.
      components: of a variant, what it gives its base, by the argument's name.
    """

    summary: str
    factory: Callable[..., Algorithm]
    default_config: Any
    hyperparams: type
    base: str | None = None
    components: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> type:
        """The frozen dataclass of its structure."""
        return type(self.default_config)


def _variant(
    summary: str,
    name: str,
    config: Any,
    hyperparams: dict[str, Any] | None = None,
    base: str = "ppo",
    **components: Any,
) -> Entry:
    """An entry for the step of another algorithm with some of its components chosen."""
    factory, record = _BASES[base]

    def make(env: Env, network: Any = None, config: Any = config, **others: Any) -> Algorithm:
        algorithm = factory(env, network, config=config, **{**components, **others})

        def with_defaults(**changes: Any) -> Any:
            made = algorithm.hyperparams(**changes)
            # With another config than the variant's own, some of its defaults may be absent or have no effect.
            own = {name: x for name, x in (hyperparams or {}).items() if not isinstance(getattr(made, name), tuple)}
            arrays = {
                name: jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), value, getattr(made, name))
                for name, value in own.items()
                if name not in changes
            }
            return dataclasses.replace(made, **arrays)

        return algorithm._replace(name=name, hyperparams=with_defaults)

    make.__name__ = name
    return Entry(summary, memoize(make), config, record, base, components)


def _cqn(env: Env, network: Any = None, **components: Any) -> Algorithm:
    if network is not None:
        raise ValueError(f"cqn: its critic is config.network, a CoarseConfig; got network = {network}.")
    return cqn.cqn(env, **components)


_BASES: dict[str, tuple[Callable[..., Algorithm], type]] = {
    "ppo": (ppo.ppo, ppo.Hyperparams),
    "dqn": (dqn.dqn, dqn.Hyperparams),
    "sac": (sac.sac, sac.Hyperparams),
    "td3": (td3.td3, td3.Hyperparams),
    "cqn": (_cqn, cqn.Hyperparams),
}
# Kapturowski et al. 2019: much weight on errors, and no importance weights.
_R2D2_REPLAY: Any = buffers.Coefficients(alpha=0.9, beta=0.0, beta_end=0.0)  # type: ignore[arg-type]
_ONE_UPDATE = {"num_epochs": 1, "num_minibatches": 1, "clip_value": False, "normalize_advantage": "none"}

ALGORITHMS: dict[str, Entry] = {
    "ppo": Entry("proximal policy optimization (Schulman et al. 2017)", ppo.ppo, ppo.Config(), ppo.Hyperparams),
    "trpo": Entry(
        "trust region policy optimization (Schulman et al. 2015)", trpo.trpo, trpo.Config(), trpo.Hyperparams
    ),
    "hnpg": Entry(
        "hybrid natural policy gradient, which learns from a dataset too (Zhou et al. 2023)",
        hnpg.hnpg,
        hnpg.Config(),
        hnpg.Hyperparams,
    ),
    "props": Entry(
        "proximal robust on-policy sampling on PPO (Corrado and Hanna 2023)",
        props.props,
        props.Config(),
        props.Hyperparams,
    ),
    "harpg": Entry(
        "Hessian-aided recursive policy gradient (Fatkhullin et al. 2023)",
        harpg.harpg,
        harpg.Config(),
        harpg.Hyperparams,
    ),
    "stream_q": Entry(
        "stream Q and SARSA(lambda) (Elsayed et al. 2024)",
        stream_q.stream_q,
        stream_q.Config(),
        stream_q.Hyperparams,
    ),
    "stream_ac": Entry(
        "stream AC(lambda) (Elsayed et al. 2024)", stream_ac.stream_ac, stream_ac.Config(), stream_ac.Hyperparams
    ),
    "utilities": Entry(
        "general utilities of the occupancy, tabular policies (Barakat et al. 2023)",
        utilities.utilities,
        utilities.Config(),
        utilities.Hyperparams,
    ),
    "stream_td": Entry(
        "stream TD(lambda), prediction (Elsayed et al. 2024)",
        stream_td.stream_td,
        stream_td.Config(),
        stream_td.Hyperparams,
    ),
    "ccn": Entry(
        "columnar-constructive networks, TD(lambda) prediction (Javed et al. 2023)",
        ccn.ccn,
        ccn.Config(),
        ccn.Hyperparams,
    ),
    "mac": Entry(
        "multi-level Monte Carlo actor-critic, average reward (Suttle et al. 2023)",
        mac.mac,
        mac.Config(),
        mac.Hyperparams,
    ),
    "lpg": Entry(
        "agent of a learned rule over sequences, LPG (Oh et al. 2020)", lpg.lpg, lpg.Config(), lpg.Hyperparams
    ),
    "disco": Entry(
        "agent of a learned update rule, Disco103 (Oh et al. 2025)", disco.disco, disco.Config(), disco.Hyperparams
    ),
    "bpg": Entry("Bayesian policy gradient (Ghavamzadeh et al. 2016)", bpg.bpg, bpg.Config(), bpg.Hyperparams),
    "avg": Entry("action value gradient, streaming (Vasan et al. 2024)", avg.avg, avg.Config(), avg.Hyperparams),
    "reppo": Entry(
        "relative entropy pathwise policy optimization (Voelcker et al. 2025)",
        reppo.reppo,
        reppo.Config(),
        reppo.Hyperparams,
    ),
    "a2c": _variant(
        "advantage actor-critic, A3C's synchronous form (Mnih et al. 2016)",
        "a2c",
        ppo.Config(num_envs=8, num_steps=5, **_ONE_UPDATE),
        {"learning_rate": 7e-4, "gae_lambda": 1.0},
        objective=objectives.policy_gradient(),
        optimizer=rmsprop,
    ),
    "reinforce": _variant(
        "Monte-Carlo policy gradient with a value baseline (Williams 1992)",
        "reinforce",
        ppo.Config(num_envs=16, num_steps=128, **{**_ONE_UPDATE, "normalize_advantage": "batch"}),
        {"learning_rate": 3e-3},
        objective=objectives.policy_gradient(),
        estimator=estimators.monte_carlo("value"),
    ),
    "rloo": _variant(
        "policy gradient, baseline of the other environments (Kool et al. 2019)",
        "rloo",
        ppo.Config(num_envs=16, num_steps=128, **{**_ONE_UPDATE, "normalize_advantage": "batch"}),
        {"learning_rate": 3e-3},
        objective=objectives.policy_gradient(),
        estimator=estimators.monte_carlo("leave_one_out"),
    ),
    "n_pg_igt": _variant(
        "normalized gradient with implicit gradient transport (Fatkhullin et al. 2023)",
        "n_pg_igt",
        ppo.Config(num_envs=8, num_steps=256, **{**_ONE_UPDATE, "schedule": "constant"}),
        {"learning_rate": 0.3, "entropy_coef": 0.0},
        objective=objectives.policy_gradient(),
        estimator=estimators.monte_carlo("value"),
        optimizer=acting.separate(gradient_transport()),
    ),
    "subpo": _variant(
        "policy gradient on marginal gains of submodular rewards (Prajapat et al. 2023)",
        "subpo",
        ppo.Config(
            num_envs=64, num_steps=25, **{**_ONE_UPDATE, "normalize_advantage": "batch", "schedule": "constant"}
        ),
        {"learning_rate": 3e-3, "gamma": 1.0, "entropy_coef": 0.0},
        objective=objectives.policy_gradient(),
        estimator=estimators.monte_carlo("value"),
    ),
    "impala": _variant(
        "policy gradient with V-trace for actors that lag behind (Espeholt et al. 2018)",
        "impala",
        ppo.Config(num_envs=32, num_steps=20, actor_lag=1, **_ONE_UPDATE),
        {"learning_rate": 2e-3, "gae_lambda": 1.0},
        objective=objectives.policy_gradient(),
        estimator=estimators.vtrace(),
        optimizer=rmsprop,
    ),
    "ppo_kl": _variant(
        "PPO with a fixed KL penalty (Schulman et al. 2017, eq. 8)",
        "ppo_kl",
        ppo.Config(),
        objective=objectives.kl_penalty(),
    ),
    "ppo_ewma": _variant(
        "PPO that stays close to an average of its policies (Hilton et al. 2022)",
        "ppo_ewma",
        ppo.Config(proximal="ewma", normalize_advantage="ewma"),
    ),
    "mdpo": _variant(
        "mirror descent policy optimization, on-policy (Tomar et al. 2020)",
        "mdpo",
        # Ten passes as the authors', but of 4 minibatches each: theirs are of the whole rollout, num_minibatches=1.
        ppo.Config(num_envs=8, num_steps=256, num_epochs=10, schedule="constant"),
        {"learning_rate": 3e-4},
        objective=objectives.mdpo(),
    ),
    "spo": _variant("simple policy optimization (Xie et al. 2024)", "spo", ppo.Config(), objective=objectives.spo()),
    "dpo": _variant("discovered policy optimization (Lu et al. 2022)", "dpo", ppo.Config(), objective=objectives.dpo()),
    "awr": _variant(
        "advantage-weighted regression on on-policy data (Peng et al. 2019)",
        "awr",
        ppo.Config(),
        objective=objectives.awr(),
    ),
    "vmpo": _variant(
        "on-policy maximum a posteriori policy optimization (Song et al. 2020)",
        "vmpo",
        ppo.Config(),
        objective=objectives.vmpo(),
    ),
    "dqn": Entry("deep Q-learning (Mnih et al. 2015)", dqn.dqn, dqn.Config(), dqn.Hyperparams),
    "pqn": Entry(
        "Q(lambda) without replay or target network (Gallici et al. 2024)", pqn.pqn, pqn.Config(), pqn.Hyperparams
    ),
    "sqirl": Entry(
        "Q-iteration from random exploration, SQIRL (Laidlaw et al. 2024)",
        sqirl.sqirl,
        sqirl.Config(),
        sqirl.Hyperparams,
    ),
    "double_dqn": _variant(
        "double Q-learning (van Hasselt et al. 2015)", "double_dqn", dqn.Config(), base="dqn", backup=values.double()
    ),
    "dueling_dqn": _variant(
        "value and advantages apart, double Q-learning (Wang et al. 2016)",
        "dueling_dqn",
        dqn.Config(network=QNetworkConfig(dueling=True)),
        base="dqn",
        backup=values.double(),
    ),
    "per_dqn": _variant(
        "double Q-learning from prioritized replay (Schaul et al. 2016)",
        "per_dqn",
        dqn.Config(prioritized=True),
        base="dqn",
        backup=values.double(),
    ),
    "munchausen_dqn": _variant(
        "Munchausen DQN (Vieillard et al. 2020)", "munchausen_dqn", dqn.Config(), base="dqn", backup=values.munchausen()
    ),
    "c51": _variant(
        "categorical DQN (Bellemare et al. 2017)",
        "c51",
        dqn.Config(),
        base="dqn",
        head=values.categorical(low=0.0, high=100.0),
    ),
    "qr_dqn": _variant(
        "quantile regression DQN (Dabney et al. 2017)",
        "qr_dqn",
        dqn.Config(network=QNetworkConfig(layer_norm=True)),
        base="dqn",
        head=values.quantile(50),
    ),
    "iqn": _variant(
        "implicit quantile networks (Dabney et al. 2018)",
        "iqn",
        dqn.Config(),
        base="dqn",
        head=values.implicit_quantile(),
    ),
    "rainbow": _variant(
        "double, dueling, noisy, prioritized, 3 steps and C51 (Hessel et al. 2017)",
        "rainbow",
        dqn.Config(prioritized=True, n_step=3, network=QNetworkConfig(dueling=True, noisy=True)),
        {"epsilon_start": 0.0, "epsilon_end": 0.0, "max_grad_norm": 10.0},
        base="dqn",
        head=values.categorical(low=0.0, high=100.0),
        backup=values.double(),
    ),
    "log_loss_dqn": _variant(
        "DQN with the log loss of FQI-LOG on bounded values (Ayoub et al. 2024)",
        "log_loss_dqn",
        dqn.Config(),
        base="dqn",
        head=values.logistic(),
    ),
    "ggd_dqn": _variant(
        "DQN whose errors are generalized Gaussian (Kim et al. 2024)",
        "ggd_dqn",
        dqn.Config(network=QNetworkConfig(layer_norm=True)),
        base="dqn",
        head=values.generalized_gaussian(error="product"),
    ),
    "loglin_dqn": _variant(
        "LogLinDQN: returns learned through a logarithm (Fatemi and Tavakoli 2022)",
        "loglin_dqn",
        dqn.Config(),
        base="dqn",
        head=values.mapped(),
    ),
    "dqn_reg": _variant(
        "DQNReg: squared error and 0.1 Q, a loss found by evolution (Co-Reyes et al. 2021)",
        "dqn_reg",
        dqn.Config(),
        base="dqn",
        head=values.dqn_reg(),
    ),
    "dqn_clipped": _variant(
        "DQNClipped: two maxima, a loss found by evolution (Co-Reyes et al. 2021)",
        "dqn_clipped",
        dqn.Config(),
        base="dqn",
        head=values.dqn_clipped(),
    ),
    "annealed_dqn": _variant(
        "from Q-learning to expected SARSA with progress, after Omura et al. 2025",
        "annealed_dqn",
        dqn.Config(),
        base="dqn",
        backup=values.annealed(values.maximum(), values.expected()),
    ),
    "i_dqn": _variant(
        "i-QN: a chain of Bellman iterations learned at once (Vincent et al. 2024)",
        "i_dqn",
        dqn.Config(num_links=4),
        {"target_period": 200},
        base="dqn",
    ),
    "r2d2": _variant(
        "recurrent replay with stored memory and burn-in (Kapturowski et al. 2019)",
        "r2d2",
        dqn.Config(
            num_envs=16,
            num_steps=4,
            batch_size=32,
            num_rounds=16,
            num_warmup_steps=128,
            n_step=5,
            burn_in=8,
            length=16,
            prioritized=True,
            network=QNetworkConfig(hidden=(64, 64), dueling=True, memory="lstm", memory_size=64),
        ),
        {"replay": _R2D2_REPLAY, "max_grad_norm": 10.0},
        base="dqn",
        head=values.scalar(transform="signed_hyperbolic"),
        backup=values.double(),
    ),
    "sac": Entry("soft actor-critic (Haarnoja et al. 2018)", sac.sac, sac.Config(), sac.Hyperparams),
    "discrete_sac": Entry(
        "soft actor-critic for discrete actions (Christodoulou 2019)",
        discrete_sac.discrete_sac,
        discrete_sac.Config(),
        discrete_sac.Hyperparams,
    ),
    "mpo": Entry(
        "maximum a posteriori policy optimization (Abdolmaleki et al. 2018)", mpo.mpo, mpo.Config(), mpo.Hyperparams
    ),
    "mrq": Entry(
        "Q-learning on features of a learned model, MR.Q (Fujimoto et al. 2025)", mrq.mrq, mrq.Config(), mrq.Hyperparams
    ),
    "cqn": Entry(
        "coarse-to-fine Q-network for continuous actions (Seo et al. 2024)", cqn.cqn, cqn.Config(), cqn.Hyperparams
    ),
    "cqn_as": _variant(
        "CQN whose critic values sequences of actions (Seo and Abbeel 2024)",
        "cqn_as",
        cqn.Config(length=4),
        {"critic_learning_rate": 5e-5, "noise_start": 0.01, "noise_end": 0.01},
        base="cqn",
        optimizer=adam_with(weight_decay=0.1),
    ),
    "td3": Entry("twin delayed DDPG (Fujimoto et al. 2018)", td3.td3, td3.Config(), td3.Hyperparams),
    "ddpg": _variant(
        "deep deterministic policy gradient (Lillicrap et al. 2015)",
        "ddpg",
        td3.Config(policy_delay=1, network=ControlConfig(num_critics=1)),
        {"policy_noise": 0.0},
        base="td3",
    ),
    "redq": _variant(
        "randomized ensembled double Q-learning, 20 updates a step (Chen et al. 2021)",
        "redq",
        sac.Config(num_updates=20, policy_delay=20, network=ControlConfig(num_critics=10)),
        base="sac",
        aggregate=ensembles.subset(2),
    ),
    "droq": _variant(
        "dropout and layer norm in the critics, 20 updates a step (Hiraoka et al. 2021)",
        "droq",
        sac.Config(num_updates=20, policy_delay=20, network=ControlConfig(norm="layer", dropout=True)),
        base="sac",
        aggregate=ensembles.minimum(climb="mean"),
    ),
    "tqc": _variant(
        "truncated quantile critics (Kuznetsov et al. 2020)",
        "tqc",
        sac.Config(network=ControlConfig(num_critics=5, num_quantiles=25)),
        base="sac",
        aggregate=ensembles.truncated(2),
    ),
    "crossq": _variant(
        "batch normalization, no target network (Bhatt et al. 2024)",
        "crossq",
        sac.Config(policy_delay=3, target=False, network=ControlConfig(norm="batch")),
        {f"{part}_learning_rate": 1e-3 for part in ("policy", "critic", "temperature")},
        base="sac",
        optimizer=adam_with(beta1=0.5),
    ),
    "simba": _variant(
        "SAC with normalized inputs and residual blocks (Lee et al. 2025)",
        "simba",
        sac.Config(
            normalize_observations=True,
            network=ControlConfig(block="residual", hidden=(128,), critic_hidden=(512, 512)),
        ),
        {f"{part}_learning_rate": 1e-4 for part in ("policy", "critic", "temperature")}
        | {"initial_temperature": 0.01, "target_entropy": -0.5},
        base="sac",
        optimizer=adam_with(weight_decay=1e-2),
    ),
    "simba_v2": _variant(
        "SAC with weights, features and returns of bounded length (Lee et al. 2025)",
        "simba_v2",
        sac.Config(
            normalize_observations=True,
            normalize_rewards=True,
            network=ControlConfig(block="hyperspherical", hidden=(128,), critic_hidden=(512, 512), num_bins=101),
        ),
        {f"{part}_learning_rate": 1e-4 for part in ("policy", "critic", "temperature")}
        | {"initial_temperature": 0.01, "target_entropy": -0.5},
        base="sac",
        optimizer=on_spheres(adam_with()),
    ),
    "d4pg": _variant(
        "deterministic policy, histogram of 5-step returns (Barth-Maron et al. 2018)",
        "d4pg",
        td3.Config(policy_delay=1, n_step=5, network=ControlConfig(num_critics=1, num_bins=51)),
        {"policy_noise": 0.0, "exploration_noise": 0.3},
        base="td3",
    ),
    "mdpo_off_policy": _variant(
        "mirror descent policy optimization, off-policy (Tomar et al. 2020)",
        "mdpo_off_policy",
        sac.Config(reference="previous", learn_temperature=False),
        {"initial_temperature": 0.2},
        base="sac",
        aggregate=ensembles.minimum(climb="first"),
    ),
    "annealed_sac": _variant(
        "SAC, from the optimality operator to the policy's own (Omura et al. 2025)",
        "annealed_sac",
        sac.Config(annealed=True),
        base="sac",
    ),
    "annealed_td3": _variant(
        "TD3, from the optimality operator to the policy's own (Omura et al. 2025)",
        "annealed_td3",
        td3.Config(annealed=True),
        base="td3",
    ),
    "beer": _variant(
        "DDPG with a bound on how alike consecutive features are (He et al. 2024)",
        "beer",
        td3.Config(policy_delay=1, regularizer="beer", network=ControlConfig(num_critics=1)),
        {"policy_noise": 0.0},
        base="td3",
    ),
    "fast_td3": _variant(
        "TD3 on many environments at once, histograms (Seo et al. 2025)",
        "fast_td3",
        td3.Config(
            num_envs=1024,
            num_updates=2,
            num_rounds=10,
            batch_size=32_768,
            capacity=1024 * 1024,
            num_warmup_steps=16,
            target_policy=False,
            exploration="per_episode",
            normalize_observations=True,
            network=ControlConfig(hidden=(512, 256, 128), critic_hidden=(1024, 512, 256), num_bins=101),
        ),
        {"tau": 0.1, "policy_noise": 0.001, "exploration_noise": 0.4},
        base="td3",
        aggregate=ensembles.minimum(),
        optimizer=adam_with(weight_decay=0.1),
    ),
    "fast_sac": _variant(
        "SAC in the same way (Seo et al. 2025)",
        "fast_sac",
        sac.Config(
            num_envs=1024,
            num_updates=2,
            policy_delay=2,
            num_rounds=10,
            batch_size=32_768,
            capacity=1024 * 1024,
            num_warmup_steps=16,
            normalize_observations=True,
            network=ControlConfig(hidden=(512, 256, 128), critic_hidden=(1024, 512, 256), num_bins=101),
        ),
        {"tau": 0.1},
        base="sac",
        optimizer=adam_with(weight_decay=0.1),
    ),
}


def make(name: str, env: Env, **config: Any) -> Algorithm:
    """Builds a registered algorithm, with changes to its config.

    Args:
      name: as `jaxrl list algorithms` prints it.
      env: the environment to learn in.
      **config: fields of the algorithm's `Config` to change; a `network` may also be one that is built, where the
        factory takes one.

    Raises:
      ValueError: the name or a field is unknown, or what the algorithm's factory raises.

    Example:
      >>> import jaxrl
      >>> make("a2c", jaxrl.make_env("gymnax/CartPole-v1"), num_envs=8).env_steps
      40
    """
    if name not in ALGORITHMS:
        raise ValueError(unknown(name, ALGORITHMS, kind="algorithm"))
    entry = ALGORITHMS[name]
    fields = [field.name for field in dataclasses.fields(entry.default_config)]
    for field in config:
        if field not in fields:
            raise ValueError(unknown(field, fields, kind=f"field of {name}'s config"))
    built = isinstance(config.get("network"), ActorCritic | QNetwork | ControlNetworks)
    # A factory that takes no network finds one in its config, and says what it wants there.
    taken = "network" in inspect.signature(entry.factory).parameters
    arguments = {"network": config.pop("network")} if built and taken else {}
    return entry.factory(env, config=dataclasses.replace(entry.default_config, **config), **arguments)
