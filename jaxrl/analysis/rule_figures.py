"""Pictures of learned rules: over progress, of targets, over horizons, and of the search that found them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxrl.analysis import style
from jaxrl.analysis.drift_figures import Constraints, plot_drifts
from jaxrl.meta.evolve import Tasks
from jaxrl.meta.imitation import Make, observed
from jaxrl.names import distinct
from jaxrl.objectives.rules import Rule
from jaxrl.runs import Run
from jaxrl.types import Algorithm, Key, Metrics, Objective, PolicyInputs

# More points than this only darken a scatter.
_MAX_POINTS = 4000


class TargetSample(NamedTuple):
    """What a rule gave for steps of agents that live by it, and what those steps were worth.

    Attributes:
      target: π̂, [steps].
      outcome: the discounted return from the step to the end of its episode or rollout, [steps].
      advantage: the return less what the agent's prediction y explains of it linearly, [steps].
    """

    target: np.ndarray
    outcome: np.ndarray
    advantage: np.ndarray


def at_progress(objective: Objective, progress: float) -> Objective:
    """An objective that sees the same progress at all times.

    Args:
      objective: of samples.
      progress: share of training that has passed.

    Example:
      >>> from jaxrl.objectives import lpo
      >>> at_progress(lpo(progress=True), 0.5).name
      'ta_lpo'
    """

    def loss(params: PyTree, inputs: PolicyInputs) -> tuple[Array, Metrics]:
        return objective.loss(params, inputs.replace(progress=jnp.float32(progress)))  # type: ignore[attr-defined]

    return objective._replace(loss=loss)


def plot_drift_over_progress(
    objective: Objective,
    params: PyTree,
    path: Path | str,
    progress: Sequence[float] = (0.0, 0.5, 1.0),
    num: int = 101,
) -> list[Constraints]:
    """Heat maps of a drift that changes over training, a column for each moment, each with its constraint check.

    Args:
      objective: with progress, such as `lpo(progress=True)`.
      params: its weights.
      path: of the picture.
      progress: shares of training that have passed.
      num: points on each axis.

    Returns:
      The checks, in order.
    """
    drifts = [(f"n/N = {share:.2g}", at_progress(objective, share), params) for share in progress]
    return plot_drifts(drifts, path, num)


def sample_targets(
    make: Make,
    rule: Rule,
    *,
    num_iterations: int = 25,
    num_learners: int = 16,
    tasks: Tasks | None = None,
) -> Any:
    """Targets of a rule in the lives of agents that it teaches.

    Args:
      make: the agent of a rule.
      rule: the rule.
      num_iterations: of each life.
      num_learners: lives.
      tasks: draws the environment's parameters of each; None: those of the hyperparameters.

    Returns:
      `(key, hparams) -> TargetSample`, all steps of all lives, to be called from the host.

    Example:
      >>> import jaxrl
      >>> from jaxrl.algorithms import lpg
      >>> from jaxrl.objectives import rules
      >>> env, config = jaxrl.make_env("chains/Short"), lpg.Config(num_envs=2, num_steps=5, tabular=True)
      >>> make, rule = (lambda rule: lpg.lpg(env, rule, config)), rules.a2c(4)
      >>> sample = sample_targets(make, rule, num_iterations=2, num_learners=3)
      >>> sample(jax.random.key(0), make(rule).hyperparams()).target.shape
      (60,)
    """
    agent, step = make(rule), observed(make, rule)

    def one(key: Key, hparams: Any) -> tuple[Array, Any]:
        key_task, key_agent = jax.random.split(key)
        if tasks is not None:
            hparams = hparams.replace(env=tasks(key_task))

        def advance(state: Any, _: None) -> tuple[Any, Any]:
            after, _metrics, inputs = step(state, hparams)
            return after, (rule.targets(hparams.objective, inputs).policy, inputs)

        return jax.lax.scan(advance, agent.init(key_agent, hparams), None, num_iterations)[1]

    run = jax.jit(jax.vmap(one, (0, None)))

    def sample(key: Key, hparams: Any) -> TargetSample:
        target, inputs = jax.device_get(run(jax.random.split(key, num_learners), hparams))
        gamma, outcome = float(np.ravel(inputs.gamma)[0]), np.zeros(inputs.reward.shape)
        later = np.zeros(inputs.reward.shape[:2] + inputs.reward.shape[3:])
        for t in reversed(range(inputs.reward.shape[2])):
            later = inputs.reward[:, :, t] + gamma * np.where(inputs.ended[:, :, t], 0.0, later)
            outcome[:, :, t] = later
        left = [_unexplained(np.asarray(outcome[life]), inputs.prediction[life]) for life in range(num_learners)]
        advantage = np.stack(left)
        return TargetSample(*(np.asarray(x, np.float64).ravel() for x in (target, outcome, advantage)))

    return sample


def _unexplained(outcome: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """What is left of the returns of a life, [n, T, B], after least squares on y of each iteration."""
    left = np.empty(outcome.shape)
    for n, (values, seen) in enumerate(zip(outcome, prediction, strict=True)):
        # The entries of y sum to 1, so that a constant is among what they explain.
        features = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
        weights = np.linalg.lstsq(features, values.ravel(), rcond=None)[0]
        left[n] = (values.ravel() - features @ weights).reshape(values.shape)
    return left


def regression(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope and intercept of least squares, and the share of variance explained, R².

    Args:
      x: [n], not all equal.
      y: [n].

    Example:
      >>> regression(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
      (2.0, 1.0, 1.0)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    spread = np.mean((x - x.mean()) ** 2)
    if spread == 0.0:
        return float("nan"), float(y.mean()), float("nan")
    slope = np.mean((x - x.mean()) * (y - y.mean())) / spread
    total = np.mean((y - y.mean()) ** 2)
    share = slope**2 * spread / total if total else float("nan")
    return float(slope), float(y.mean() - slope * x.mean()), float(share)


def plot_targets(samples: Sequence[tuple[str, TargetSample]], path: Path | str) -> list[tuple[float, float]]:
    """Scatters a rule's target π̂ against return and advantage, with regression lines; one row a rule.

    Args:
      samples: title and sample of each rule.
      path: of the picture.

    Returns:
      R² of π̂ by return and by advantage, for each rule.
    """
    figure, panels = _figure(len(samples), 2, (7.4, 3.2 * len(samples) + 0.2))
    shares = []
    for row, (title, sample) in zip(panels, samples, strict=True):
        keep = np.random.default_rng(0).permutation(len(sample.target))[:_MAX_POINTS]
        found = []
        for panel, name, x in zip(row, ("return", "advantage"), (sample.outcome, sample.advantage), strict=True):
            slope, intercept, share = regression(x, sample.target)
            panel.scatter(x[keep], sample.target[keep], s=3, color=style.COLORS[0], alpha=0.25, linewidths=0)
            ends = np.array([x.min(), x.max()])
            panel.plot(ends, intercept + slope * ends, color=style.COLORS[1])
            panel.set(xlabel=name, title=f"{title}: R² = {share:.2f}, slope {slope:.2g}")
            panel.axhline(0.0, color="gray", linewidth=0.6)
            style.tidy(panel)
            found.append(share)
        row[0].set_ylabel("target π̂")
        shares.append((found[0], found[1]))
    _save(figure, path)
    return shares


class Schedule(NamedTuple):
    """Means over learners along lives of one length.

    Attributes:
      life: N, iterations.
      entropy: of the policy after each iteration, [N].
      scale: root of the mean of π̂² in each, [N].
    """

    life: int
    entropy: np.ndarray
    scale: np.ndarray


def schedules(agent: Algorithm, lives: Sequence[int], *, num_learners: int = 16, tasks: Tasks | None = None) -> Any:
    """Entropy and target scale of agents of a rule over lives of several lengths, in one program.

    Args:
      agent: of a rule over sequences (`jaxrl.algorithms.lpg`).
      lives: their lengths in iterations.
      num_learners: of each length.
      tasks: draws the environment's parameters of each; None: those of the hyperparameters.

    Returns:
      `(key, hparams) -> [Schedule, …]`, to be called from the host. All lengths meet the same tasks.

    Raises:
      ValueError: a length is not positive, or there is none.
    """
    if not lives or min(lives) < 1:
        raise ValueError(f"schedules: lives must be lengths of at least 1; got lives = {tuple(lives)}.")

    def one(key: Key, hparams: Any, horizon: Array) -> tuple[Array, Array]:
        key_task, key_agent = jax.random.split(key)
        hparams = hparams.replace(horizon=horizon)
        if tasks is not None:
            hparams = hparams.replace(env=tasks(key_task))
        step = lambda state, _: agent.step(state, hparams)
        _, metrics = jax.lax.scan(step, agent.init(key_agent, hparams), None, max(lives))
        return metrics["policy/entropy"], metrics["rule/policy_square"]

    run = jax.jit(jax.vmap(one, (0, None, None)))

    def measure(key: Key, hparams: Any) -> list[Schedule]:
        keys, found = jax.random.split(key, num_learners), []
        for life in lives:
            entropy, square = jax.device_get(run(keys, hparams, jnp.float32(life * agent.env_steps)))
            found.append(Schedule(life, entropy[:, :life].mean(0), np.sqrt(square[:, :life].mean(0))))
        return found

    return measure


def plot_schedules(rules: Sequence[tuple[str, Sequence[Schedule]]], path: Path | str) -> None:
    """Draws the policy's entropy and the scale of π̂ over the share of life that has passed; one row a rule.

    A length of life has one color in all rows, and one entry of the legend.

    Args:
      rules: title and schedules of each rule.
      path: of the picture.
    """
    figure, panels = _figure(len(rules), 2, (9.2, 3.0 * len(rules) + 0.2))
    lines: dict[int, Any] = {}
    lives = list(dict.fromkeys(one.life for _, found in rules for one in found))
    for row, (title, found) in zip(panels, rules, strict=True):
        for one in found:
            share = np.arange(1, one.life + 1) / one.life
            color = style.COLORS[lives.index(one.life) % len(style.COLORS)]
            lines[one.life] = style.line(row[0], share, one.entropy, color=color)
            style.line(row[1], share, one.scale, color=color)
        row[0].set(xlabel="share of life n/N", ylabel="policy's entropy, nats", title=title)
        row[1].set(xlabel="share of life n/N", ylabel="√ mean π̂²", title="scale of the target")
        for panel in row:
            style.tidy(panel)
    labels = [f"N = {life}" for life in lines]
    figure.legend(lines.values(), labels, loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def plot_generations(runs: Sequence[Run], path: Path | str) -> None:
    """Draws searches: held-out fitness with the deviation over held-out learners, the population's, and the noise.

    Of searches by regularized evolution it draws the best fitness beside the population's, and how much of what is
    proposed is known.

    Args:
      runs: of `jaxrl meta-train`, or of `jaxrl.evolve` through `jaxrl.fit`; of one outer loop.
      path: of the picture.

    Raises:
      ValueError: a run has no generations yet, or none at all, or the runs are of two outer loops.
    """
    rows = [run.metrics() for run in runs]
    for run, found in zip(runs, rows, strict=True):
        if "held_out/fitness" not in found:
            raise ValueError(f"{run.path} has no generations: it is no run of `jaxrl meta-train`, or has just begun.")
    of_programs = ["search/share_known" in found for found in rows]
    if len(set(of_programs)) > 1:
        raise ValueError("Searches by strategies and those of programs are drawn apart: their curves are others.")
    figure, panels = _figure(1, 2 if of_programs[0] else 3, (8.2 if of_programs[0] else 11.5, 3.4))
    fitness = panels[0, 0]
    names = distinct([run.path for run in runs]) if len(runs) > 1 else ["held out"]
    for place, (run, name, found) in enumerate(zip(runs, names, rows, strict=True)):
        color = style.COLORS[place % len(style.COLORS)]
        column = lambda name, found=found: np.asarray(found[name], np.float64).ravel()
        every = 1 if of_programs[0] else run.record.get("meta", {}).get("held_out_every", 1)
        generation, held_out = every * (1 + np.arange(found.sizes["step"])), column("held_out/fitness")
        style.line(fitness, generation, held_out, color=color, label=name)
        style.line(fitness, generation, column("fitness/mean"), color=color, linestyle=":", linewidth=1)
        draw = _draw_programs if of_programs[0] else _draw_strategy
        draw(panels[0], generation, held_out, column, color)
    for panel in panels[0]:
        style.count_axis(panel, "generation")
        style.tidy(panel)
    fitness.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _draw_strategy(panels: Any, generation: np.ndarray, held_out: np.ndarray, column: Any, color: str) -> None:
    fitness, ties, noise = panels
    deviation = column("held_out/std")
    band = (generation, held_out - deviation, held_out + deviation)
    if len(generation) == 1:
        fitness.vlines(*band, color=color, alpha=0.3)
    else:
        fitness.fill_between(*band, color=color, alpha=0.15, linewidth=0)
    style.line(ties, generation, column("fitness/tie_rate"), color=color)
    style.line(noise, generation, column("strategy/snr"), color=color)
    style.line(noise, generation, column("strategy/half_cosine"), color=color, linestyle=":", linewidth=1)
    noise.axhline(1.0, color="gray", linewidth=0.8)
    fitness.set(ylabel="fitness", title="mean ± deviation over learners\n(dotted, ○: the population's mean)")
    ties.set(ylabel="share", title="ties", ylim=(-0.02, 1.02))
    noise.set(ylabel="ratio, cosine", title="signal to noise, 1 is noise alone\n(dotted, ○: cosine of halves)")


def _draw_programs(panels: Any, generation: np.ndarray, held_out: np.ndarray, column: Any, color: str) -> None:
    del held_out
    fitness, known = panels
    style.line(fitness, generation, column("fitness/best"), color=color, linestyle="--", linewidth=1)
    style.line(known, generation, column("search/share_known"), color=color)
    fitness.set(
        ylabel="fitness", title="the best so far on held-out keys\n(dashed, □: when found; dotted, ○: population)"
    )
    known.set(ylabel="share", title="proposals that are known", ylim=(-0.02, 1.02))


def _figure(num_rows: int, num_columns: int, size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _save(figure: Any, path: Path | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
