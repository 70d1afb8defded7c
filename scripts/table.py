"""The table of algorithms and environments: runs its cells, and writes the page.

    scripts/table.py run --algorithms a2c trpo --environments gymnax/CartPole-v1    runs cells that have no figure yet
    scripts/table.py write                                                          writes docs/results.md

A cell is one algorithm with the defaults of its name (`jaxrl list algorithms`), the settings that its environment has
in TASKS, for all algorithms and for this one, and NUM_SEEDS seeds from one key. After the steps stated each seed plays
NUM_EPISODES greedy episodes with statistics frozen; the figure is the interquartile mean over the seeds' mean returns
with a 95% bootstrap interval. What was run is kept in docs/results.json, each cell with its seeds' returns, versions
and revision; a cell that is there is not run again unless --again. A cell that never ran stays empty. A cell below what
a peer has published has a sentence in NOTES: only what is known of the difference, "no cause looked into" otherwise.
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
NUM_SEEDS, NUM_EPISODES = 10, 32


@dataclasses.dataclass(frozen=True)
class Task:
    """One environment.

    Attributes:
      num_steps: environment steps a seed.
      config: fields of the config, set where an algorithm has them.
      network: fields of `config.network`, set where it has them.
      hparams: hyperparameters, set where an algorithm has them.
      own: settings of an algorithm by its name, which a peer has published for it here: (fields of the config,
        hyperparameters, whose they are).
      replay_steps: environment steps of algorithms that learn from replay about once a step; 0: as many as the others.
      published: others' figures, with their source.
    """

    num_steps: int
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    hparams: dict[str, Any] = dataclasses.field(default_factory=dict)
    own: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = dataclasses.field(default_factory=dict)
    replay_steps: int = 0
    published: str = ""


_PQN = {
    "pqn": ({}, {"reward_scale": 0.1}, "of its authors' configuration for CartPole, of which the rest is not taken")
}
_SCALED = {"normalize_observations": True, "normalize_rewards": True, "clip_value": False}


def _minatar(rate: float, published: str) -> Task:
    """A game with the sizes that OPEN has for PPO there, and the rate that lrla has tuned for Adam."""
    own = {"num_envs": 64, "num_minibatches": 8}, {"learning_rate": rate}, "sizes of OPEN, rate of lrla"
    network = {"activation": "relu", "convolve": False}
    return Task(1_000_000, network=network, own={"ppo": own}, published=f"all at 10M steps: {published}")


TASKS = {
    "gymnax/CartPole-v1": Task(
        500_000,
        own=_PQN,
        published="CleanRL at 500,000 steps PPO 490.0 ± 6.1, DQN (JAX) 498.4 ± 2.3, C51 (JAX) 491.1 ± 9.7; "
        "gymnax's agent 500 (150,000 steps); purejaxrl's DQN 496, "
        "[run here](value-based.md#on-cartpole) in training, 10 seeds",
    ),
    "gymnax/Acrobot-v1": Task(
        500_000,
        own=_PQN,
        published="CleanRL at 500,000 steps PPO -86.4 ± 1.3, DQN (JAX) -88.9 ± 1.6; gymnax's agent -80 (500,000 steps)",
    ),
    "gymnax/MountainCar-v0": Task(
        500_000,
        published="CleanRL at 500,000 steps PPO -200, DQN (JAX) -188.9 ± 11.8, C51 (JAX) -174.3 ± 36; "
        "gymnax's agent -118 (500,000 steps, 64 epochs of PPO each iteration)",
    ),
    "gymnax/Pendulum-v1": Task(
        500_000,
        _SCALED,
        replay_steps=20_000,
        published="gymnax's agent -130 (1M steps); a test of sbx asks TQC for more than -800 after 1,500 steps",
    ),
    "gymnax/MountainCarContinuous-v0": Task(
        500_000, _SCALED, replay_steps=20_000, published="gymnax's agent 92 (1M steps)"
    ),
    "gymnax/Breakout-MinAtar": _minatar(1e-2, "PPO in OPEN 50.08, gymnax's agent 28"),
    "gymnax/Asterix-MinAtar": _minatar(3e-3, "PPO in OPEN 15.04, gymnax's agent 15"),
    "gymnax/Freeway-MinAtar": _minatar(1e-3, "PPO in OPEN 61.84, gymnax's agent 58"),
    "gymnax/SpaceInvaders-MinAtar": _minatar(7e-3, "PPO in OPEN 167.09, gymnax's agent 131"),
    "gymnax/Catch-bsuite": Task(100_000, published="gymnax's agent 1"),
    "gymnax/DiscountingChain-bsuite": Task(100_000, published="gymnax's agent 1.1"),
    "gymnax/DeepSea-bsuite": Task(100_000, published="gymnax's agent 0"),
    "brax/hopper": Task(2_000_000, _SCALED),
    "brax/halfcheetah": Task(2_000_000, _SCALED),
    "brax/walker2d": Task(2_000_000, _SCALED),
    "brax/ant": Task(
        2_000_000,
        _SCALED,
        published="PPO in OPEN 6517 at 50M steps; brax's own PPO about 8,000 in its demonstration, as told in "
        "cleanrl#313, steps not stated",
    ),
}

NOT_HERE = {
    "stream_td": "predicts and does not act",
    "ccn": "predicts and does not act",
    "utilities": "is for tabular states and does not read rewards",
    "lpg": "needs the weights of a rule",
    "disco": "needs the weights of a rule",
}
"""Registered names that have no row, and why: with the defaults of the name there is no return to learn for."""

_LONGER = "The published figures are after 10M steps, these after 1M; 10M were not run."
_UNTUNED = "The name's defaults, not tuned for this task; no cause was looked into."
_NOT_CONTINUOUS = "The name's defaults, not tuned for continuous control; no cause was looked into."
_HALF = "The agent of gymnax has a configuration for twice these steps; beyond that no cause was looked into."
_NO_REPLAY = "The paper's replay buffer is [not here](objectives.md); no further cause was looked into."
_ONE_AGENT = "Above CleanRL's PPO; below gymnax's single agent, of which no seeds are told."
NOTES = {
    "dqn gymnax/CartPole-v1": "The interval of ten seeds reaches 500; CleanRL's figure is of three seeds and of "
    "episodes in training. [experiments/value-ablations](../experiments/value-ablations/README.md) has the sizes of "
    "purejaxrl beside the defaults: ten seeds show no difference.",
    **{f"{name} gymnax/CartPole-v1": _ONE_AGENT for name in ("reinforce", "rloo", "n_pg_igt")},
    **{f"{name} gymnax/CartPole-v1": _UNTUNED for name in ("impala", "harpg", "bpg")},
    "subpo gymnax/CartPole-v1": "Its defaults are for `coverage/`: no entropy bonus, a constant rate.",
    "mac gymnax/CartPole-v1": "Its aim is the average reward, which is 1 whatever one does unless `reset_cost`, here "
    "0, is taken off where the pole falls; with 10 it learns (tests/learning/test_mac.py).",
    **{
        f"{name} gymnax/Acrobot-v1": _ONE_AGENT
        for name in ("ppo", "a2c", "impala", "ppo_ewma", "mdpo", "spo", "dpo", "vmpo", "rloo", "ppo_kl", "props")
    },
    **{
        f"{name} gymnax/Acrobot-v1": "Seeds that did not get there, which the interval shows. " + _UNTUNED
        for name in ("reinforce", "n_pg_igt", "subpo", "mac", "harpg", "bpg")
    },
    "awr gymnax/Acrobot-v1": "One of ten seeds never gets there, which the interval shows. " + _NO_REPLAY,
    "pqn gymnax/Acrobot-v1": _UNTUNED,
    **{f"{name} gymnax/Pendulum-v1": _HALF for name in ("ppo", "ppo_ewma", "mdpo", "spo", "dpo", "vmpo", "ppo_kl")},
    "stream_ac gymnax/Pendulum-v1": "Some of ten seeds have not learned, which the interval shows. " + _UNTUNED,
    "awr gymnax/Pendulum-v1": _NO_REPLAY,
    **{f"{name} gymnax/Pendulum-v1": _NOT_CONTINUOUS for name in ("a2c", "impala", "reinforce")},
    **{f"{name} gymnax/MountainCarContinuous-v0": _NOT_CONTINUOUS for name in ("a2c", "impala")},
    "trpo gymnax/MountainCarContinuous-v0": "Three of ten seeds end at 0, the return of no force at all; the others "
    "are above 93. No cause was looked into.",
    "vmpo gymnax/MountainCarContinuous-v0": "The interval reaches the published figure.",
    "trpo gymnax/Pendulum-v1": "One of ten seeds has not learned (-1,348), which the interval shows. " + _HALF,
    "stream_q gymnax/Acrobot-v1": _UNTUNED,
    "stream_ac gymnax/Acrobot-v1": "Three of ten seeds never met the goal, the others have -78 to -86. No cause was "
    "looked into beyond its normalizers: of 30 others, by hand, over 300,000 steps four never met it, and three with "
    "moments by the population's variance.",
    **{
        f"{name} gymnax/MountainCar-v0": "No episode met the goal, as with CleanRL's PPO; no cause was looked into."
        for name in ("ppo", "a2c", "trpo", "mdpo", "pqn", "ppo_kl", "ppo_ewma", "spo", "dpo", "vmpo", "stream_q", "awr")
    },
    "stream_ac gymnax/MountainCar-v0": _UNTUNED,
    "dqn gymnax/MountainCar-v0": "Eight of ten seeds never met the goal, the others have -165 and -137.",
    **{f"pqn gymnax/{game}-MinAtar": _LONGER for game in ("Breakout", "SpaceInvaders")},
    **{f"ppo gymnax/{game}-MinAtar": _LONGER for game in ("Breakout", "Asterix", "Freeway", "SpaceInvaders")},
    **{
        f"{name} gymnax/Catch-bsuite": _UNTUNED
        for name in ("a2c", "impala", "reinforce", "rloo", "n_pg_igt", "mac", "harpg", "bpg")
    },
    **{
        f"{name} gymnax/DiscountingChain-bsuite": _UNTUNED
        for name in (
            "stream_q",
            "a2c",
            "impala",
            "dqn",
            "awr",
            "mac",
            "harpg",
            "n_pg_igt",
            "reinforce",
            "rloo",
            "subpo",
        )
    },
    "mac gymnax/DeepSea-bsuite": _UNTUNED,
    **{
        f"{name} gymnax/MountainCarContinuous-v0": "All seeds end near 0, the return of no force at all. " + _UNTUNED
        for name in ("harpg", "stream_ac")
    },
    "stream_q gymnax/DeepSea-bsuite": "It has no directed exploration, and its share of random actions falls to 0.01 "
    "over the first 5% of the steps; whether more of them would do was not tried.",
}
"""Why a cell is below a peer's figure, as far as it is known, by `algorithm environment`; shown once the cell is."""


def build(algorithm: str, environment: str) -> tuple[Any, Any, int]:
    """The member, its hyperparameters and its number of iterations.

    Raises:
      ValueError: the algorithm does not take the environment.
    """
    import jaxrl
    from jaxrl.algorithms.registry import ALGORITHMS

    task, default = TASKS[environment], ALGORITHMS[algorithm].default_config
    own_config, own_hparams, _ = task.own.get(algorithm, ({}, {}, ""))
    fields = {field.name for field in dataclasses.fields(default)}
    changes = {name: value for name, value in task.config.items() if name in fields}
    if task.network and "network" in fields:
        known = {field.name for field in dataclasses.fields(default.network)}
        network = {name: value for name, value in task.network.items() if name in known}
        changes["network"] = dataclasses.replace(default.network, **network)
    member = jaxrl.make(algorithm, jaxrl.make_env(environment), **changes, **own_config)
    # Those that act in a `Box` and keep what they saw: DQN and PQN learn from replay less often than they step.
    total = task.replay_steps if task.replay_steps and "capacity" in fields else task.num_steps
    num_steps = max(1, total // member.env_steps)
    leaves = {field.name for field in dataclasses.fields(type(member.hyperparams()))}
    given = {"horizon": float(num_steps * member.env_steps), **task.hparams}
    shared = {name: value for name, value in given.items() if name in leaves}
    hparams = member.hyperparams(**shared, **own_hparams)
    return member, hparams, num_steps


def own_settings(algorithm: str, environment: str) -> str:
    """What the cell has beside defaults and what all algorithms have there, "" if nothing."""
    config, hparams, whose = TASKS[environment].own.get(algorithm, ({}, {}, ""))
    told = ", ".join(f"`{name}={value}`" for name, value in {**config, **hparams}.items())
    return f"{told}: {whose}" if told else ""


def cell(algorithm: str, environment: str, num_seeds: int) -> dict[str, Any]:
    """Trains and evaluates one cell."""
    import jaxrl
    from jaxrl import runs
    from jaxrl.meta.layout import choose_layout

    member, hparams, num_steps = build(algorithm, environment)
    population = jaxrl.population(member, num_seeds, (), *choose_layout(member, hparams, num_seeds))
    began = time.perf_counter()
    state, _ = jax.jit(jaxrl.train(population, num_steps))(jax.random.key(0), hparams)
    keys = jax.random.split(jax.random.key(1), num_seeds)
    play = jax.jit(jax.vmap(jaxrl.evaluate(member, NUM_EPISODES), (0, 0, None)))
    episodes = play(keys, state, hparams.env)
    returns = np.asarray(episodes.mean_return, np.float64)
    told = runs.environment()
    return {
        "returns": [round(float(x), 4) for x in returns],
        "env_steps": num_steps * member.env_steps,
        "seconds": round(time.perf_counter() - began, 1),
        "date": datetime.date.today().isoformat(),
        "machine": {name: told[name] for name in ("device", "num_devices", "git_revision", "git_modified")},
        "settings": own_settings(algorithm, environment),
        "versions": {name: told["versions"][name] for name in ("python", "jax", "gymnax", "brax")},
    }


def load() -> dict[str, dict[str, Any]]:
    """Cells by `algorithm environment`."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(cells: dict[str, dict[str, Any]]) -> None:
    """Writes all cells, one a line, in place of the old file at once."""
    lines = [f"{json.dumps(name)}: {json.dumps(cells[name])}" for name in sorted(cells)]
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    temporary.replace(RESULTS)


def figure(returns: list[float], interval: bool = True) -> str:
    """`IQM [low, high]` of the seeds; seeds whose episodes did not finish are counted. Or the IQM alone."""
    from jaxrl.analysis import statistics

    mean = float(statistics.iqm(returns))
    digits = 1 if abs(mean) >= 10 else 2
    if not interval:
        return f"{mean:.{digits}f}"
    low, high = statistics.bootstrap_interval(returns)
    lost = int(np.isnan(returns).sum())
    text = f"{mean:.{digits}f} [{float(low):.{digits}f}, {float(high):.{digits}f}]"
    return text + (f" ({lost} seeds finished no episode)" if lost else "")


def title(environment: str) -> str:
    """A short name for the head of a column: `Breakout` of `gymnax/Breakout-MinAtar`."""
    short = re.sub(r"-(v\d+|MinAtar|bsuite)$", "", environment.split("/")[1])
    return re.sub(r"(?=Continuous)", " ", short)


def matrix(cells: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    """Lines of the table of all algorithms and environments; a cell that was not run is empty."""
    lines = [f"| algorithm | {' | '.join(map(title, TASKS))} |", "|---" * (1 + len(TASKS)) + "|"]
    for name in names:
        row = [""] * len(TASKS)
        for i, (environment, task) in enumerate(TASKS.items()):
            if one := cells.get(f"{name} {environment}"):
                fewer = f" ({one['env_steps'] // 1000}k)" if one["env_steps"] <= task.replay_steps else ""
                row[i] = figure(one["returns"], interval=False) + fewer
        lines.append(f"| {' | '.join([name, *row])} |")
    return lines


def notes(environment: str, cells: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    """Lines with the sentences of NOTES for an environment's cells that were run, each once for all that have it."""
    shared: dict[str, list[str]] = {}
    for name in names:
        if (key := f"{name} {environment}") in cells and key in NOTES:
            shared.setdefault(NOTES[key], []).append(f"`{name}`")
    return [line for text, whom in shared.items() for line in (f"{', '.join(whom)}: {text}", "")]


def render(cells: dict[str, dict[str, Any]]) -> str:
    """The page.

    Raises:
      ValueError: a cell or a note is of an algorithm or environment that the table does not have.
    """
    from jaxrl.algorithms.registry import ALGORITHMS

    known = [name for name in ALGORITHMS if name not in NOT_HERE]
    for what, keys in (("cell", cells), ("note", NOTES)):
        for key in keys:
            name, _, environment = key.partition(" ")
            if name not in known or environment not in TASKS:
                raise ValueError(
                    f"table: a {what} must be of an algorithm and an environment that are in the table; got {key!r}. "
                    "Algorithms are those of jaxrl.algorithms.registry without NOT_HERE, environments those of TASKS."
                )
    names = [name for name in known if any(key.split()[0] == name for key in cells)]
    lines = [
        "# Results",
        "",
        "Written by `scripts/table.py write` from docs/results.json, which `scripts/table.py run` extends.",
        "",
        f"Interquartile mean over {NUM_SEEDS} seeds of the mean greedy return over {NUM_EPISODES} episodes after the",
        "steps stated, further below with a 95% bootstrap interval. Each algorithm has the defaults of its name but",
        "for what is named under a table; nothing was tuned here. What an environment sets for all of them is in TASKS",
        "of the script. Random steps that an agent with replay begins with, `num_warmup_steps` of each environment,",
        "are not among the steps. Thousands in brackets are the steps of a cell that has fewer than its column.",
        "",
        f"An empty cell was not run: {len(known) * len(TASKS) - len(cells)} of {len(known) * len(TASKS)}, among them "
        "those of algorithms that do not",
        "take an environment's actions. Without a row:",
        f"{'; '.join(f'{name} {why}' for name, why in NOT_HERE.items())}.",
        "",
        *matrix(cells, names + [name for name in known if name not in names]),
        "",
        "Published figures are as their authors give them. CleanRL's are of episodes in training (DQN: three seeds).",
        "gymnax's are those that its README has for one agent a task, PPO's or an evolution strategy's, without seeds",
        "or spread; the steps beside them are those of the PPO configurations in gymnax-blines. Of rejax and of PQN no",
        "figure for these environments was found in what was read, only curves and times. Under a table is told what",
        "is known of cells that are below a published figure.",
        "",
    ]
    for environment, task in TASKS.items():
        rows = [name for name in names if f"{name} {environment}" in cells]
        lines += [f"## {environment}, {task.num_steps:,} steps", ""]
        lines += [f"Published: {task.published}." if task.published else "No published figure was found.", ""]
        if not rows:
            lines += ["Nothing was run here.", ""]
            continue
        lines += ["| algorithm | return | steps run |", "|---|---|---|"]
        for name in rows:
            one = cells[f"{name} {environment}"]
            lines.append(f"| {name} | {figure(one['returns'])} | {one['env_steps']:,} |")
        lines.append("")
        for name in rows:
            if settings := cells[f"{name} {environment}"].get("settings"):
                lines += [f"`{name}` has {settings}.", ""]
        lines += notes(environment, cells, rows)
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run cells that have no figure yet")
    run.add_argument("--algorithms", nargs="+", required=True)
    run.add_argument("--environments", nargs="+", default=list(TASKS), choices=list(TASKS))
    run.add_argument("--num-seeds", type=int, default=NUM_SEEDS)
    run.add_argument("--again", action="store_true", help="run also cells that have a figure")
    commands.add_parser("write", help="write docs/results.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        # One device a core; see docs/sweeps.md.
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
        for environment in arguments.environments:
            for algorithm in arguments.algorithms:
                name = f"{algorithm} {environment}"
                if name in load() and not arguments.again:
                    continue
                try:
                    found = cell(algorithm, environment, arguments.num_seeds)
                except ValueError as refused:
                    print(f"{name}: not run: {refused}", flush=True)
                    continue
                save({**load(), name: found})
                print(f"{name}: {figure(found['returns'])} in {found['seconds']} s", flush=True)
    PAGE.write_text(render(load()))


if __name__ == "__main__":
    main()
