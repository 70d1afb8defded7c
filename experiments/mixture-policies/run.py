"""Do mixtures of Gaussians explore more and end better than one Gaussian? PMOE's objective in PPO.

    .venv/bin/python experiments/mixture-policies/run.py    --tiny to see that it works
    .venv/bin/python experiments/mixture-policies/run.py --table    the tables and the figure of what has been run

Claim tried: Ren et al. 2021 (arXiv:2104.09122, PMOE), that a mixture whose router learns by the frequency loss has
better returns than one Gaussian, explores more, and that its components come apart. Rollouts, minibatches, rates and
coefficients are those of an author's code for PPO (quantumiracle/Popular-RL-Algorithms, pmoe_ppo.py), for all arms.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from goals import goals, num_reached

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxrl
from jaxrl import objectives
from jaxrl.algorithms import ppo
from jaxrl.analysis import statistics, style, tables
from jaxrl.analysis.spans import draw_spans, span_returns
from jaxrl.networks import ActorCritic
from jaxrl.ops import distributions
from jaxrl.ops.statistics import normalize

HERE = Path(__file__).parent
NUM_SPANS = 25


class Task(NamedTuple):
    """Discount, environment steps of a seed, seeds, and episodes of an evaluation."""

    gamma: float
    num_steps: int
    num_seeds: int
    num_episodes: int


TASKS = {
    "goals/even": Task(0.99, 100_000, 10, 128),
    "goals/uneven": Task(0.99, 100_000, 10, 128),
    "gymnax/Pendulum-v1": Task(0.95, 200_000, 10, 64),
    # Not among those run by default: most of its time is compilation.
    "brax/hopper": Task(0.99, 300_000, 5, 16),
}
# Arm: components and weight of the router's loss; None: the policy is PPO's Gaussian, or its loss PPO's.
ARMS: dict[str, tuple[int | None, float | None]] = {
    "Gaussian": (None, None),
    "k = 1": (1, None),
    "k = 4": (4, 1.0),
    "k = 8": (8, 1.0),
    "k = 4, no router's loss": (4, None),
}


def environment(task: str) -> jaxrl.Env:
    """The environment of a task."""
    suite, _, name = task.partition("/")
    return goals(name) if suite == "goals" else jaxrl.make_env(task)


def agent_of(task: str, arm: str) -> tuple[jaxrl.Algorithm, Any]:
    """PPO with the arm's policy and loss, and its network."""
    components, router_coef = ARMS[arm]
    objective = objectives.clip()
    if components is not None and router_coef is not None:
        objective = objectives.pmoe(components, router_coef=router_coef)
    policy = {} if components is None else {"policy": "mixture", "num_components": components}
    config = ppo.Config(
        num_envs=16,
        num_steps=128,
        num_epochs=10,
        num_minibatches=32,
        schedule="constant",
        normalize_observations=True,
        normalize_rewards=True,
    )
    env = environment(task)
    net = jaxrl.actor_critic(env.observation_space, env.action_space, heads=objective.heads, **policy)
    return ppo.ppo(env, net, objective, config=config), net


def look_at(net: ActorCritic, state: Any, obs: jax.Array) -> dict[str, jax.Array]:
    """What the components do in states [..., D]: numbers, shape ()."""
    policy = net.apply(state.params, normalize(state.observation_statistics, obs))[0].policy  # type: ignore[index]
    numbers = {"std": jnp.mean(jnp.exp(policy.log_std))}
    if not isinstance(policy, distributions.GaussianMixture) or policy.mean.shape[-2] == 1:
        return numbers
    router, num = policy.router(), policy.mean.shape[-2]
    usage = jnp.mean(router.probs(), axis=tuple(range(obs.ndim - 1)))
    apart = jnp.linalg.norm(policy.mean[..., :, None, :] - policy.mean[..., None, :, :], axis=-1)
    return {
        **numbers,
        # Effective numbers of components: in one state, and over all of them.
        "in_state": jnp.exp(jnp.mean(router.entropy())),
        "overall": jnp.exp(-jnp.sum(usage * jnp.log(jnp.maximum(usage, 1e-20)))),
        "distance": jnp.mean(apart) * num / (num - 1),
    }


def run(name: str, arm: str, task: Task) -> dict[str, np.ndarray]:
    """Trains all seeds at once.

    Args:
      name: of the environment.
      arm: of `ARMS`.
      task: how it is run.

    Returns:
      `num_steps`, environment steps of each seed; `curve`, mean return in each of `NUM_SPANS` spans of training,
      [seeds, spans]; `mode`, mean return of the final policy's modes, [seeds]; for goals `early` and `late`, returns of
      sampled episodes after a tenth of training and after all of it, [seeds, episodes]; and the final policy's numbers
      of `look_at`, [seeds], in the states that the iterations of the last tenth ended in.
    """
    agent, net = agent_of(name, arm)
    tenth = max(task.num_steps // (10 * agent.env_steps), 1)
    hparams = agent.hyperparams(learning_rate=3e-4, gamma=task.gamma, entropy_coef=0.0)

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state, metrics = agent.step(state, hparams)
        return state, ({x: metrics[x] for x in ("episode/return_sum", "episode/count")}, state.actor.obs)

    def played(sampled: bool) -> Any:
        play = jaxrl.evaluate(agent, task.num_episodes, sampled=sampled)
        return jax.jit(jax.vmap(lambda key, state: play(key, state, hparams.env)))

    keys = jax.random.split(jax.random.key(0), (4, task.num_seeds))
    play_modes, play_draws = played(sampled=False), played(sampled=True)
    learn = jax.jit(jax.vmap(lambda state: jax.lax.scan(step, state, None, length=tenth)))
    state, obs, rows, samples = jax.jit(jax.vmap(lambda key: agent.init(key, hparams)))(keys[0]), None, [], {}
    for i in range(10):
        state, (metrics, obs) = learn(state)
        rows.append(metrics)
        if name.startswith("goals/") and i in (0, 9):
            samples["late" if i else "early"] = play_draws(keys[1 + i // 9], state).returns
    metrics = {x: np.concatenate([row[x] for row in rows], axis=-1) for x in rows[0]}
    numbers = jax.jit(jax.vmap(lambda state, obs: look_at(net, state, obs)))(state, obs)
    found = {"mode": play_modes(keys[3], state).mean_return, **samples, **numbers}
    found |= {"curve": span_returns(metrics, NUM_SPANS), "num_steps": 10 * tenth * agent.env_steps}
    return {x: np.asarray(values) for x, values in found.items()}


def interval(values: Any, digits: int) -> str:
    """The mean over seeds with its 95% bootstrap interval; nothing if there is no such number."""
    values = np.asarray(values, np.float64)
    return tables.interval(values, f".{digits}f") if values.size and not np.isnan(values).any() else ""


def report(rows: list[dict[str, Any]], figure_path: Path) -> None:
    """Prints the tables and draws the figure."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.2), squeeze=False, layout="constrained")
    lines = [
        "| task | policy | return over all training | in its last 4% | of the mode | P(beats Gaussian) | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    inside = [
        "| task | policy | goals reached after a tenth | at the end | components in a state | overall "
        "| distance of means | standard deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for panel, name in zip(panels[0], names, strict=True):
        own = [row for row in rows if row["task"] == name]
        digits = 2 if name.startswith("goals/") else 0
        for i, row in enumerate(own):
            draws, gaussian = (np.asarray(each["curve"])[:, -1] for each in (row, own[0]))
            better = float(statistics.probability_of_improvement(draws, gaussian))
            cells = [name, row["arm"], interval(np.mean(row["curve"], axis=1), digits + 1 if digits else 0)]
            cells += [interval(draws, digits), interval(row["mode"], digits), f"{better:.2f}"]
            lines.append("| " + " | ".join([*cells, str(row["seconds"])]) + " |")
            reached = ["", ""]
            if name.startswith("goals/"):
                worth = name.partition("/")[2]
                reached = [interval(num_reached(np.asarray(row[x]), worth), 1) for x in ("early", "late")]
            numbers = [interval(row.get(x, []), 2) for x in ("in_state", "overall", "distance", "std")]
            inside.append("| " + " | ".join([name, row["arm"], *reached, *numbers]) + " |")
            draw_spans(panel, np.asarray(row["curve"]), row["num_steps"], statistics.mean, i, row["arm"])
        panel.set(title=name, xlabel="environment steps")
        style.tidy(panel)
    print("\n".join([*lines, "", *inside]))
    panels[0, 0].set_ylabel("return while training")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(names), frameon=False
    )
    figure.savefig(figure_path, dpi=90)


def main() -> None:
    """Runs what has not been run, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and figure.png")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS)[:3])
    parser.add_argument("--table", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--tiny", action="store_true", help="ten iterations of two seeds on the first task")
    arguments = parser.parse_args()
    tasks = {name: TASKS[name] for name in arguments.tasks}
    if arguments.tiny:
        name = arguments.tasks[0]
        tasks = {name: Task(TASKS[name].gamma, 0, 2, 8)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name, task in () if arguments.table else tasks.items():
        for arm in ARMS:
            if any((row["task"], row["arm"]) == (name, arm) for row in rows):
                continue
            began = time.perf_counter()
            found = {key: np.round(values.astype(float), 5).tolist() for key, values in run(name, arm, task).items()}
            seconds = round(time.perf_counter() - began)
            rows.append({"task": name, "arm": arm, "seconds": seconds, **found})
            path.write_text(json.dumps(rows))
            print(f"{name} {arm}: {seconds} s", flush=True)
    report(rows, arguments.out / "figure.png")


if __name__ == "__main__":
    main()
