"""Does a learning rule generalize better if it learns where it falls furthest behind a written one?

    .venv/bin/python experiments/algorithmic-regret/run.py           all searches; again to go on after a kill
    .venv/bin/python experiments/algorithmic-regret/run.py --test    the tables, of the searches that are there
    .venv/bin/python experiments/algorithmic-regret/plot.py          the figure

--tiny for each to see that it works. Claims tried, at a small size: Jackson et al. 2023 (arXiv:2310.02782), that levels
replayed by algorithmic regret have more of it than random ones, and that a rule learned on them does better than one
learned on random levels, on the held-out levels that a rule does worst on.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from experiments import searches
from jaxrl import levels, strategies
from jaxrl.algorithms import lpg
from jaxrl.analysis import tables
from jaxrl.envs import grids
from jaxrl.meta.evolve import evolve
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm

jax.config.update("jax_num_cpu_devices", 2)

HERE = Path(__file__).parent
ARMS = ("random", "regret")
NUM_UPDATES, NUM_EPISODES = 50, 16
CONFIG = lpg.Config(num_envs=16, num_steps=20, tabular=True, optimizer="sgd")
RATES = {"learning_rate": 40.0, "prediction_learning_rate": 4.0}
RULE = rules.lpg(hidden=32, num_bins=8, core="gru")
DRAW = grids.levels("Small")
# Levels on which A2C gains less over a random policy say nothing of a rule, and are not divided by.
LEAST_GAIN = 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
      seeds: searches of each arm.
      candidates: of a generation.
      generations: between two looks at the held-out levels.
      rounds: of so many generations.
      held_out: levels.
      buffer: levels that are kept.
      updates: of a learner's life.
      levels: of the test.
      repeats: learners on each of them.
      chunk: learners that run together on a core.
    """

    seeds: int = 3
    candidates: int = 64
    generations: int = 10
    rounds: int = 16
    held_out: int = 64
    buffer: int = 512
    updates: int = NUM_UPDATES
    levels: int = 256
    repeats: int = 2
    chunk: int = 32


TINY = Size(1, 8, 2, 2, held_out=2, buffer=8, updates=3, levels=16, repeats=1, chunk=8)


def rule_agent() -> Algorithm:
    """The inner learner: tables under the rule."""
    return lpg.lpg(grids.make("Small"), RULE, CONFIG)


def a2c_agent() -> tuple[Algorithm, Any]:
    """The written learner."""
    return searches.a2c_beside(grids.make("Small"), CONFIG, RATES)


def evolving(arm: str, size: Size) -> tuple[Algorithm, Any]:
    """The search and its hyperparameters."""
    search = strategies.open_es(size.candidates, strategies.pairwise)
    lives = {"num_steps": size.updates, "num_episodes": NUM_EPISODES, "sampled": True, "num_devices": 2}
    a2c, a2c_hparams = a2c_agent()
    course = levels.regret(
        a2c, DRAW, num_levels=size.candidates // 2, size=size.buffer, p_replay=0.5, chunk=size.chunk, **lives
    )
    agents = evolve(
        rule_agent(),
        search,
        "objective",
        num_generations=size.generations,
        num_held_out=size.held_out,
        common_keys="pairs",
        tasks=DRAW if arm == "random" else None,
        curriculum=None if arm == "random" else course,
        chunk=size.chunk,
        **lives,
    )
    return agents, agents.hyperparams(
        strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999),
        curriculum=None if arm == "random" else course.hyperparams(antagonist=a2c_hparams),
        **RATES,
    )


def evolved(folder: Path, path: Path, arm: str, seed: int, size: Size) -> None:
    """Runs a search in a folder of its own, or goes on with it; keeps its weights, curves and best-scored levels."""
    agents, hparams = evolving(arm, size)
    curves = ("held_out/fitness", "fitness/tie_rate", "strategy/snr")
    told = "held out {held_out/fitness:.3f}, ties {fitness/tie_rate:.2f}"
    if arm == "regret":
        curves += ("curriculum/score_replayed", "curriculum/score_new")
        told += ", regret replayed {curriculum/score_replayed:.3f}, new {curriculum/score_new:.3f}"
    state, metrics = searches.evolved(agents, hparams, path, f"{arm} {seed}", seed, size, told, arm=arm)
    kept = {f"value.{name}": value for name, value in state.values.items()}
    if arm == "regret":
        buffer = state.curriculum.buffer
        score = np.where(buffer.active, buffer.score, -np.inf)
        best = np.argsort(-score)[: size.candidates]
        kept |= {f"level.{name}": np.asarray(x)[best] for name, x in trees.named_leaves(buffer.levels).items()}
        kept |= {"score": score[best]}
    searches.keep(folder, f"{arm}-{seed}", kept, metrics, curves, size.generations)


def tester(agent: Algorithm, size: Size) -> Any:
    """`(hparams, levels [L], num_updates) -> mean returns [L, repeats]` of fresh learners after so many updates."""
    play = jaxrl.evaluate(agent, 64, sampled=True)

    def one(key: jax.Array, level: Any, num_updates: jax.Array, hparams: Any) -> jax.Array:
        key_train, key_play = jax.random.split(key)
        own = hparams.replace(env=level, horizon=jnp.float32(size.updates * agent.env_steps))
        return play(key_play, searches.life(agent, key_train, own, num_updates), own.env).mean_return

    run = jax.jit(over_members(one, (0, 0, None, None), 2, size.chunk))

    def returns(hparams: Any, worlds: Any, num_updates: int) -> np.ndarray:
        num = len(jax.tree.leaves(worlds)[0])
        each = jax.tree.map(lambda x: jnp.repeat(x, size.repeats, axis=0), worlds)
        keys = jax.random.split(jax.random.key(777), num * size.repeats)
        return np.asarray(run(keys, each, jnp.int32(num_updates), hparams), np.float64).reshape(num, size.repeats)

    return returns


def worst_quarter(scores: np.ndarray) -> np.ndarray:
    """Mean over the quarter of the levels with the lowest scores; [..., levels] to [...]."""
    ordered = np.sort(scores, axis=-1)
    return ordered[..., : max(scores.shape[-1] // 4, 1)].mean(-1)


def resampled(scores: dict[str, np.ndarray], num: int = 2000) -> dict[str, np.ndarray]:
    """Statistics of arms [seeds, levels] under draws of seeds and of levels, the levels the same for all arms."""
    generator = np.random.default_rng(0)
    num_levels = next(iter(scores.values())).shape[1]
    found: dict[str, list[Any]] = {arm: [] for arm in scores}
    for _ in range(num):
        drawn = generator.integers(num_levels, size=num_levels)
        for arm, values in scores.items():
            which = generator.integers(len(values), size=len(values))
            own = values[which][:, drawn]
            found[arm].append([own.mean(), worst_quarter(own).mean(), (own < 0.75).mean()])
    return {arm: np.asarray(rows) for arm, rows in found.items()}


def interval(draws: np.ndarray) -> str:
    """Of 95%, in brackets."""
    return "[{:.3f}, {:.3f}]".format(*np.percentile(draws, [2.5, 97.5]))


def tested(folder: Path, size: Size) -> None:
    """Scores of the rules on levels that no search has seen, and regret of replayed levels; writes results.json."""
    agent, (a2c, a2c_hparams) = rule_agent(), a2c_agent()
    plain = agent.hyperparams(**RATES)
    of_rule, of_a2c = tester(agent, size), tester(a2c, size)
    worlds = jax.jit(jax.vmap(DRAW))(jax.random.split(jax.random.key(54321), size.levels))
    random = of_rule(plain, worlds, 0).mean(axis=1)
    reference = of_a2c(a2c_hparams, worlds, size.updates).mean(axis=1)
    counted = reference - random >= LEAST_GAIN
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    regrets = []
    for arm in ARMS:
        for file in sorted(folder.glob(f"{arm}-*.npz")):
            arrays = np.load(file)
            part = lambda of, arrays=arrays: {
                name.removeprefix(of): jnp.asarray(arrays[name]) for name in arrays if name.startswith(of)
            }
            hparams = trees.replace_leaves(plain, part("value."))
            reached = of_rule(hparams, worlds, size.updates).mean(axis=1)
            found[arm].append(((reached - random) / np.where(counted, reference - random, np.nan))[counted])
            if arm == "regret":
                own = grids.Level(**part("level."))
                new = of_a2c(a2c_hparams, own, size.updates) - of_rule(hparams, own, size.updates)
                told = (float(arrays["score"].mean()), float(new.mean()), float((reference - reached).mean()))
                regrets.append(told)
                print(
                    "{}: regret of its best-scored levels as told {:.3f}, of new learners {:.3f}; of random levels "
                    "{:.3f}".format(file.stem, *told)
                )
    scores = {arm: np.stack(rows) for arm, rows in found.items() if rows}
    draws = resampled(scores)
    print(
        f"\n{counted.sum()} of {size.levels} test levels count, on which A2C gains at least {LEAST_GAIN} over a random "
    )
    print("policy. Score: the rule's gain by that of A2C. Intervals of 95% over searches and levels.\n")
    print(tables.head("levels of the search", "searches", "mean score", "worst quarter", "share below 0.75"))
    for arm, values in scores.items():
        point = (values.mean(), worst_quarter(values).mean(), (values < 0.75).mean())
        cells = (f"{x:.3f} {interval(draws[arm][:, i])}" for i, x in enumerate(point))
        print(tables.row(arm, len(values), *cells))
    if len(scores) == 2:
        apart = draws["regret"] - draws["random"]
        means = [worst_quarter(scores[arm]).mean() for arm in ("regret", "random")]
        print(f"\nworst quarter, regret less random: {means[0] - means[1]:.3f} {interval(apart[:, 1])}")
    record = {"scores": {arm: values.tolist() for arm, values in scores.items()}, "regrets": regrets}
    (folder / "results.json").write_text(json.dumps(record))


def main() -> None:
    """Evolves or tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/algorithmic-regret"), help="folder of the runs")
    parser.add_argument("--arm", choices=ARMS, help="one of the two; otherwise both")
    parser.add_argument("--seed", type=int, help="one search; otherwise all")
    options, size = searches.parsed(parser, HERE, Size(), TINY)
    with searches.timed():
        if options.test:
            tested(options.out, size)
        else:
            for seed in range(size.seeds) if options.seed is None else (options.seed,):
                for arm in ARMS if options.arm is None else (options.arm,):
                    if not (options.out / f"{arm}-{seed}.npz").exists():
                        evolved(options.out, options.runs / f"{arm}-{seed}", arm, seed, size)


if __name__ == "__main__":
    main()
