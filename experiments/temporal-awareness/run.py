"""Do evolution strategies find a learning rule with a schedule, where truncated meta-gradients find none?

    .venv/bin/python experiments/temporal-awareness/run.py --arm es --seed 0
    .venv/bin/python experiments/temporal-awareness/run.py --arm gradient --seed 0       through 5 updates
    .venv/bin/python experiments/temporal-awareness/run.py --arm gradient20 --seed 0     through 20
    and the same at a tenth of the rate: gradient_slow, gradient20_slow
    .venv/bin/python experiments/temporal-awareness/run.py --written     does a schedule pay on these tasks?
    .venv/bin/python experiments/temporal-awareness/run.py --test        the tables, of the rules that are there
    .venv/bin/python experiments/temporal-awareness/plot.py              the figure

--tiny for each to see that it works. The claim, at a small size: Jackson et al. 2024 (arXiv:2402.05828), that
meta-gradients through a few updates fail to find rules that change over the agent's life, and evolution over whole
lives finds them.
"""

import argparse
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import jaxrl
from experiments import searches
from jaxrl import spaces, strategies
from jaxrl.algorithms import lpg
from jaxrl.analysis import rule_figures, tables
from jaxrl.meta.evolve import evolve
from jaxrl.meta.imitation import imitate, observed
from jaxrl.meta.meta_gradient import meta_gradient, policy_gradient
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm, Env, EnvStep

HERE = Path(__file__).parent
LENGTH = 7
WRITTEN = rules.a2c(8, -0.25, 1.25, standardize=False)
RULE = rules.lpg(hidden=16, num_bins=8, core="gru", progress=True)
# Updates of the lives that rules are searched for: 20, 40 or 60, so that K divides them all.
SHORTEST, LONGEST = 20, 60
# Of the arms that take meta-gradients: through how many updates, K, and Adam's rate.
GRADIENTS = {"gradient": (5, 1e-3), "gradient_slow": (5, 1e-4), "gradient20": (20, 1e-3), "gradient20_slow": (20, 1e-4)}
SIGMA = 0.05
REGULARIZERS = (
    ("policy/entropy", -0.05),
    ("prediction/entropy", -0.001),
    ("rule/policy_square", 0.005),
    ("rule/prediction_square", 0.001),
)
BONUSES = tuple((first, last) for first in (0, 0.01, 0.025, 0.05, 0.1, 0.2) for last in (0, first))
FROZEN = (math.nan, 0.0, 0.5, 1.0)


@struct.dataclass
class Lock:
    """A task.

    Attributes:
      way: the action that leads on, in the first state and in each of the lock's, [1 + LENGTH].
      near: what leaving from the first state pays.
      far: what the end of the lock pays.
    """

    way: jax.Array
    near: jax.Array
    far: jax.Array


def task(key: jax.Array) -> Lock:
    """Draws a lock; leaving pays a tenth to a half of its end."""
    key_way, key_far, key_share = jax.random.split(key, 3)
    far = jnp.exp(jax.random.uniform(key_far, minval=math.log(0.1), maxval=0.0))
    near = far * jax.random.uniform(key_share, minval=0.1, maxval=0.5)
    return Lock(jax.random.randint(key_way, (1 + LENGTH,), 0, 2), near, far)


def locks() -> Env:
    """Two actions a state: in the first one leaves, in the others a wrong one ends the episode without a reward."""

    def reset(key: jax.Array, lock: Lock) -> tuple[jax.Array, jax.Array]:
        return jnp.int32(0), jnp.int32(0)

    def step(key: jax.Array, place: jax.Array, action: jax.Array, lock: Lock) -> tuple[jax.Array, EnvStep]:
        onward, last = action == lock.way[place], place == LENGTH
        reward = jnp.where(onward, jnp.where(last, lock.far, 0.0), jnp.where(place == 0, lock.near, 0.0))
        after = jnp.minimum(place + 1, LENGTH)
        return after, EnvStep(obs=after, reward=reward, terminated=~onward | last, truncated=jnp.bool_(False))

    space, default = spaces.Discrete(1 + LENGTH), lambda: task(jax.random.key(0))
    return Env("here/Lock", reset, step, default, space, spaces.Discrete(2), 1 + LENGTH)


ENV = locks()
CONFIG = lpg.Config(num_envs=8, num_steps=16, tabular=True, optimizer="sgd")
RATES = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
      candidates: of a generation.
      learners: that meta-gradients keep alive.
      generations: between two looks at the held-out tasks; meta-gradients get as many transitions.
      rounds: of so many generations.
      held_out: tasks.
      tasks: of the test.
      horizons: lengths of life in the test, in updates.
      frozen: those of them at which progress is held still, too.
      chunk: learners that run together.
      lives: of the imitation that searches begin at.
    """

    candidates: int = 64
    learners: int = 64
    generations: int = 5
    rounds: int = 6
    held_out: int = 128
    tasks: int = 256
    horizons: tuple[int, ...] = (10, 20, 40, 60, 120)
    frozen: tuple[int, ...] = (20, 60)
    chunk: int = 64
    lives: int = 20


TINY = Size(4, 4, 1, 2, 4, 4, (2, 5), (5,), 2, 1)


def lifetime(key: jax.Array) -> jax.Array:
    """Log-uniform, to the nearest of 20, 40 and 60 updates."""
    length = jnp.exp(jax.random.uniform(key, minval=math.log(SHORTEST), maxval=math.log(LONGEST)))
    return SHORTEST * jnp.round(length / SHORTEST).astype(jnp.int32)


@functools.cache
def frozen(rule: rules.Rule) -> rules.Rule:
    """The rule with one number more, `share`: the progress that it sees, or NaN for the true one."""

    def targets(params: Any, inputs: rules.RuleInputs) -> rules.Targets:
        seen = jnp.where(jnp.isnan(params["share"]), inputs.progress, params["share"])
        return rule.targets(params["weights"], dataclasses.replace(inputs, progress=seen))

    return rule._replace(init=lambda key: {"weights": rule.init(key), "share": jnp.float32(math.nan)}, targets=targets)


def annealed() -> rules.Rule:
    """Actor-critic with an entropy bonus that goes from `first` to `last` over the agent's life."""

    def targets(params: Any, inputs: rules.RuleInputs) -> rules.Targets:
        plain = WRITTEN.targets(params["a2c"], inputs)
        bonus = params["first"] + inputs.progress * (params["last"] - params["first"])
        return dataclasses.replace(plain, policy=plain.policy - bonus * jnp.log(inputs.probability))

    zero = jnp.float32(0.0)
    return WRITTEN._replace(init=lambda key: {"a2c": WRITTEN.init(key), "first": zero, "last": zero}, targets=targets)


def agent_of(rule: rules.Rule) -> Algorithm:
    """The inner learner: tables under a rule."""
    return lpg.lpg(ENV, rule, CONFIG)


def tester(rule: rules.Rule, num_tasks: int, chunk: int, seed: int) -> Callable[[Any, int], np.ndarray]:
    """`(weights, num_updates) -> [num_tasks]`: the share of the best return that fresh learners reach, exactly."""
    agent, policy = agent_of(rule), lpg.policy(ENV, CONFIG)

    def one(key: jax.Array, num_updates: jax.Array, weights: Any) -> jax.Array:
        key_task, key_train = jax.random.split(key)
        horizon = num_updates.astype(jnp.float32) * agent.env_steps
        hparams = agent.hyperparams(**RATES).replace(env=task(key_task), horizon=horizon, objective=weights)
        state = searches.life(agent, key_train, hparams, num_updates)
        onward = policy(state, jnp.arange(1 + LENGTH)).probs()[jnp.arange(1 + LENGTH), hparams.env.way]
        return jnp.prod(onward) + (1.0 - onward[0]) * hparams.env.near / hparams.env.far

    keys = jax.random.split(jax.random.key(seed), num_tasks)
    run = jax.jit(over_members(one, (0, None, None), 1, chunk))
    return lambda weights, num_updates: np.asarray(run(keys, jnp.int32(num_updates), weights), np.float64)


def lived(size: Size) -> float:
    """Transitions that the learners of a generation learn from, in the mean."""
    lengths = jax.vmap(lifetime)(jax.random.split(jax.random.key(1), 4096))
    return size.candidates * float(jnp.mean(lengths)) * agent_of(RULE).env_steps


def searching(arm: str, size: Size) -> tuple[Algorithm, Any, int]:
    """The search, its hyperparameters, and its steps in a round."""
    if arm == "es":
        search = strategies.open_es(size.candidates, strategies.pairwise)
        outer = evolve(
            agent_of(RULE),
            search,
            num_steps=LONGEST,
            num_generations=size.generations,
            num_held_out=1,
            num_episodes=32,
            sampled=True,
            common_keys="pairs",
            tasks=task,
            normalize=lambda fitness, lock: fitness / lock.far,
            lifetimes=lifetime,
            chunk=size.chunk,
        )
        moves = search.hyperparams(sigma=SIGMA, learning_rate=0.01, learning_rate_decay=0.999)
        return outer, outer.hyperparams(strategy=moves, **RATES), 1
    judge = policy_gradient(
        ENV, lpg.policy(ENV, CONFIG), num_envs=8, num_steps=16, tabular=True, regularizers=REGULARIZERS
    )
    outer = meta_gradient(
        agent_of(RULE),
        judge,
        lifetimes=lifetime,
        num_updates=GRADIENTS[arm][0],
        num_learners=size.learners,
        tasks=task,
        chunk=size.chunk,
    )
    hparams = outer.hyperparams(meta_learning_rate=GRADIENTS[arm][1], **RATES)
    return outer, hparams, max(1, round(size.generations * lived(size) / outer.env_steps))


def started(folder: Path, seed: int, size: Size) -> Any:
    """Hyperparameters with the weights that the searches of a seed begin at: the network imitates actor-critic."""
    file, agent = folder / f"start-{seed}.npz", agent_of(RULE)
    if not file.exists():
        learn = imitate(
            agent_of, RULE, WRITTEN, tasks=task, num_learners=32, num_iterations=LONGEST, num_lives=size.lives
        )
        teacher = agent_of(WRITTEN).hyperparams(horizon=LONGEST * agent.env_steps, **RATES)
        weights, metrics = jax.jit(learn)(jax.random.key(100 + seed), teacher)
        print("imitation: " + ", ".join(f"{name} {float(x[-1]):.3g}" for name, x in metrics.items()), flush=True)
        named = trees.named_leaves(agent.hyperparams().replace(objective=weights))
        kept: dict[str, Any] = {path: np.asarray(x) for path, x in named.items() if path.startswith("objective.")}
        np.savez_compressed(file, **kept)
    return loaded(file)


def loaded(file: Path) -> Any:
    """Hyperparameters with the weights of a file."""
    arrays = np.load(file)
    return trees.replace_leaves(agent_of(RULE).hyperparams(**RATES), {k: jnp.asarray(arrays[k]) for k in arrays.files})


def searched(folder: Path, arm: str, seed: int, size: Size) -> None:
    """Runs a search, looks at the held-out tasks after each round, and keeps weights and curve."""
    outer, hparams, num_steps = searching(arm, size)
    inner = hparams.inner.replace(objective=started(folder, seed, size).objective)
    hparams = hparams.replace(inner=inner)
    state = jax.jit(outer.init)(jax.random.key(seed), hparams)
    look = tester(RULE, size.held_out, size.chunk, 777)

    def weights_of(state: Any) -> Any:
        return trees.replace_leaves(agent_of(RULE).hyperparams(), state.values).objective

    names = ("fitness/mean", "fitness/tie_rate", "strategy/snr", "meta/loss", "meta/gradient", "meta/value_loss")
    curve: dict[str, list[float]] = {"returns": [], "cpu": []}
    metrics: dict[str, Any] = {}
    for number in range(size.rounds + 1):
        if number:
            began = time.process_time()
            state, metrics = jaxrl.advance(outer, state, hparams, num_steps)
            jax.block_until_ready(state)
            curve["cpu"].append(time.process_time() - began)
        found = [float(look(weights_of(state), n).mean()) for n in (SHORTEST, LONGEST)]
        curve["returns"].append(float(np.mean(found)))
        told = "" if not number else ", ".join(f"{n} {float(metrics[n].mean()):.3g}" for n in names if n in metrics)
        print(f"{arm} {seed}, round {number}: held out {found[0]:.3f}, {found[1]:.3f}; {told}", flush=True)
    values: dict[str, Any] = {path: np.asarray(value) for path, value in state.values.items()}
    np.savez_compressed(folder / f"{arm}-{seed}.npz", **values)
    (folder / f"{arm}-{seed}.json").write_text(
        json.dumps({"transitions_a_round": size.generations * lived(size), **curve})
    )


def written(folder: Path, size: Size) -> None:
    """Actor-critic with constant and annealed entropy bonuses: whether a schedule pays here."""
    rule, results = annealed(), {}
    run = tester(rule, size.tasks, size.chunk, 54321)
    print(tables.head("bonus, first", "last", "updates", "share of the best [95%]"))
    for first, last in BONUSES:
        weights = rule.init(jax.random.key(0)) | {"first": jnp.float32(first), "last": jnp.float32(last)}
        for horizon in size.frozen:
            found = run(weights, horizon)
            results[f"{first:g} {last:g} {horizon}"] = found.tolist()
            print(tables.row(f"{first:g}", f"{last:g}", horizon, tables.interval(found, ".3f")), flush=True)
    (folder / "written.json").write_text(json.dumps(results))


def dependence(weights: Any, num_learners: int = 16, num_updates: int = 40) -> dict[str, Any]:
    """How much what the rule says depends on the progress that it sees, at what else it sees in lives under it.

    π̂ of each step of these lives is computed again at five moments. `share` is the part of its variance that lies
    between the moments; `scale` is the root of the mean of π̂² at each, `entropy` the mean entropy of ŷ.
    """
    step, moments = observed(agent_of, RULE), jnp.linspace(0.0, 1.0, 5)

    def life(key: jax.Array) -> Any:
        key_task, key_agent = jax.random.split(key)
        agent = agent_of(RULE)
        horizon = jnp.float32(num_updates * agent.env_steps)
        hparams = agent.hyperparams(**RATES).replace(env=task(key_task), horizon=horizon, objective=weights)

        def update(state: Any, _: None) -> tuple[Any, Any]:
            found = step(state, hparams)
            state, inputs = found[0], found[2]
            said = jax.vmap(lambda at: RULE.targets(weights, dataclasses.replace(inputs, progress=at)))(moments)
            entropy = -jnp.sum(jnp.exp(said.prediction) * said.prediction, axis=-1)
            return state, (said.policy, entropy)

        return jax.lax.scan(update, agent.init(key_agent, hparams), None, num_updates)[1]

    keys = jax.random.split(jax.random.key(2468), num_learners)
    policy, entropy = (np.moveaxis(np.asarray(x, np.float64), 2, 0) for x in jax.jit(jax.vmap(life))(keys))
    policy, entropy = policy.reshape(len(moments), -1), entropy.reshape(len(moments), -1)
    return {
        "share": float(policy.var(axis=0).mean() / policy.var()),
        "scale": np.sqrt((policy**2).mean(axis=1)).tolist(),
        "mean": policy.mean(axis=1).tolist(),
        "entropy": entropy.mean(axis=1).tolist(),
    }


def tested(folder: Path, size: Size) -> None:
    """Rules on tasks that no search has seen, with true progress and with progress held still."""
    frozen_rule = frozen(RULE)
    run = tester(frozen_rule, size.tasks, size.chunk, 54321)
    measure = rule_figures.schedules(agent_of(RULE), size.frozen, tasks=task)
    results: dict[str, Any] = {"horizons": size.horizons, "frozen": size.frozen, "arms": {}}
    print(tables.head("rule", "updates", "share of the best [95%]"))
    for file in sorted(folder.glob("*-*.npz")):
        inner = loaded(file)
        arm: dict[str, Any] = {"dependence": dependence(inner.objective), "returns": {}}
        for share in FROZEN:
            name = "true" if math.isnan(share) else f"{share:g}"
            weights = {"weights": inner.objective, "share": jnp.float32(share)}
            arm["returns"][name] = {}
            for horizon in size.horizons if name == "true" else size.frozen:
                found = run(weights, horizon)
                arm["returns"][name][str(horizon)] = found.tolist()
                rule = f"{file.stem}, progress {name}"
                print(tables.row(rule, horizon, tables.interval(found, ".3f")), flush=True)
        found = measure(jax.random.key(9), inner)
        arm["schedules"] = [{"life": s.life, "entropy": s.entropy.tolist(), "scale": s.scale.tolist()} for s in found]
        kept = arm["dependence"]
        print(f"{file.stem}: {json.dumps({name: np.round(value, 3).tolist() for name, value in kept.items()})}")
        results["arms"][file.stem] = arm
    (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    """Searches or tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=("es", *GRADIENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--written", action="store_true")
    options, size = searches.parsed(parser, HERE, Size(), TINY)
    with searches.timed():
        if options.written:
            written(options.out, size)
        elif options.arm:
            searched(options.out, options.arm, options.seed, size)
        elif options.test:
            tested(options.out, size)


if __name__ == "__main__":
    main()
