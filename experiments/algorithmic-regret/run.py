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
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrl
from jaxrl import acting, fit, levels, objectives, runs, strategies
from jaxrl.algorithms import lpg, ppo
from jaxrl.envs import grids
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.ops.members import over_members
from jaxrl.types import Algorithm

jax.config.update("jax_num_cpu_devices", 2)

HERE = Path(__file__).parent
ARMS = ("random", "regret")
NUM_ENVS, NUM_STEPS, NUM_UPDATES, NUM_EPISODES = 16, 20, 50, 16
POLICY_RATE, PREDICTION_RATE = 40.0, 4.0
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
    return lpg.lpg(grids.make("Small"), RULE, lpg.Config(NUM_ENVS, NUM_STEPS, tabular=True, optimizer="sgd"))


def sgd(hparams: Any, learning_rate: Any) -> optax.GradientTransformation:
    """Gradient descent behind clipping of the norm, as the rule's agent has it."""
    return optax.chain(optax.clip_by_global_norm(hparams.max_grad_norm), optax.scale(-learning_rate))


def a2c_agent() -> tuple[Algorithm, Any]:
    """Advantage actor-critic as it is written, linear in the one-hot state, with the same rates and rollouts."""
    config = ppo.Config(
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        num_epochs=1,
        num_minibatches=1,
        clip_value=False,
        normalize_advantage="batch",
        schedule="constant",
        network=NetworkConfig(hidden=()),
    )
    agent = jaxrl.ppo(
        grids.make("Small"),
        objective=objectives.policy_gradient(),
        optimizer=acting.separate(sgd, sgd, PREDICTION_RATE),
        config=config,
    )
    return agent, agent.hyperparams(learning_rate=POLICY_RATE, entropy_coef=0.01)


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
        learning_rate=POLICY_RATE,
        prediction_learning_rate=PREDICTION_RATE,
        strategy=search.hyperparams(sigma=0.1, learning_rate=0.01, learning_rate_decay=0.999),
        curriculum=None if arm == "random" else course.hyperparams(antagonist=a2c_hparams),
    )


def evolved(folder: Path, path: Path, arm: str, seed: int, size: Size) -> None:
    """Runs a search in a folder of its own, or goes on with it; keeps its weights, curves and best-scored levels."""
    exists = (path / "run.json").exists()
    run = runs.Run.open(path) if exists else runs.Run.create(path, runs.describe(seed=seed, arm=arm))
    agents, hparams = evolving(arm, size)

    def tell(progress: fit.Progress) -> None:
        rows = run.metrics()
        last = lambda key: float(rows[key].values.ravel()[-1])
        more = ""
        if arm == "regret":
            regrets = (last(f"curriculum/score_{which}") for which in ("replayed", "new"))
            more = ", regret replayed {:.3f}, new {:.3f}".format(*regrets)
        print(
            f"{arm} {seed}, generation {progress.iteration * size.generations}: held out "
            f"{last('held_out/fitness'):.3f}, ties {last('fitness/tie_rate'):.2f}{more}, {progress.seconds:.0f} s",
            flush=True,
        )

    result = fit.fit(
        agents,
        hparams,
        run=run,
        seed=seed,
        total_iterations=size.rounds,
        segment=1,
        checkpoint_seconds=60.0,
        resume=exists,
        on_segment=tell,
    )
    if result.stopped:
        raise SystemExit(f"Stopped by signal {result.stopped}; the same command goes on from here.")
    kept: dict[str, Any] = {f"value.{name}": np.asarray(value) for name, value in result.state.values.items()}
    if arm == "regret":
        buffer = result.state.curriculum.buffer
        score = np.where(buffer.active, buffer.score, -np.inf)
        best = np.argsort(-score)[: size.candidates]
        kept |= {f"level.{name}": np.asarray(x)[best] for name, x in trees.named_leaves(buffer.levels).items()}
        kept |= {"score": score[best]}
    np.savez_compressed(folder / f"{arm}-{seed}.npz", **kept)
    curves = run.metrics()
    names = ("held_out/fitness", "fitness/tie_rate", "strategy/snr")
    names += ("curriculum/score_replayed", "curriculum/score_new") if arm == "regret" else ()
    curve = {key: np.asarray(curves[key], np.float64).ravel().tolist() for key in names}
    (folder / f"{arm}-{seed}.json").write_text(json.dumps({"generations": size.generations, "curves": curve}))


def tester(agent: Algorithm, size: Size) -> Any:
    """`(hparams, levels [L], num_updates) -> mean returns [L, repeats]` of fresh learners after so many updates."""
    play = jaxrl.evaluate(agent, 64, sampled=True)

    def one(key: jax.Array, level: Any, num_updates: jax.Array, hparams: Any) -> jax.Array:
        key_train, key_play = jax.random.split(key)
        own = hparams.replace(env=level, horizon=jnp.float32(size.updates * agent.env_steps))
        state = agent.init(key_train, own)
        # How many is data, so that a policy that has not learned needs no program of its own.
        state = jax.lax.fori_loop(0, num_updates, lambda _, state: agent.step(state, own)[0], state)
        return play(key_play, state, own.env).mean_return

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
    plain = agent.hyperparams(learning_rate=POLICY_RATE, prediction_learning_rate=PREDICTION_RATE)
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
    print("| levels of the search | searches | mean score | worst quarter | share below 0.75 |\n|---|---|---|---|---|")
    for arm, values in scores.items():
        point = (values.mean(), worst_quarter(values).mean(), (values < 0.75).mean())
        cells = " | ".join(f"{x:.3f} {interval(draws[arm][:, i])}" for i, x in enumerate(point))
        print(f"| {arm} | {len(values)} | {cells} |")
    if len(scores) == 2:
        apart = draws["regret"] - draws["random"]
        means = [worst_quarter(scores[arm]).mean() for arm in ("regret", "random")]
        print(f"\nworst quarter, regret less random: {means[0] - means[1]:.3f} {interval(apart[:, 1])}")
    record = {"scores": {arm: values.tolist() for arm, values in scores.items()}, "regrets": regrets}
    (folder / "results.json").write_text(json.dumps(record))


def main() -> None:
    """Evolves or tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of what is written")
    parser.add_argument("--runs", type=Path, default=Path("runs/algorithmic-regret"), help="folder of the runs")
    parser.add_argument("--arm", choices=ARMS, help="one of the two; otherwise both")
    parser.add_argument("--seed", type=int, help="one search; otherwise all")
    parser.add_argument("--rounds", type=int, help="of ten generations each")
    parser.add_argument("--test", action="store_true", help="the tables, instead of searches")
    parser.add_argument("--tiny", action="store_true", help="few steps of few learners")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else Size()
    if arguments.rounds:
        size = dataclasses.replace(size, rounds=arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, cpu = time.perf_counter(), time.process_time()
    if arguments.test:
        tested(arguments.out, size)
    else:
        for seed in range(size.seeds) if arguments.seed is None else (arguments.seed,):
            for arm in ARMS if arguments.arm is None else (arguments.arm,):
                if not (arguments.out / f"{arm}-{seed}.npz").exists():
                    evolved(arguments.out, arguments.runs / f"{arm}-{seed}", arm, seed, size)
    print(f"{time.perf_counter() - began:.0f} s, of CPU time {time.process_time() - cpu:.0f} s")


if __name__ == "__main__":
    main()
