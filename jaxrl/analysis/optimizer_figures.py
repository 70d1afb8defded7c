"""Pictures of learned optimizers in training: where their steps point, and how many units sleep (Goldie et al. 2024).

`watched` puts a window on any optimizer of PPO: training is the same, and the optimizer's state has sums of cosines.
"""

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxrl.analysis import style
from jaxrl.meta.evolve import Tasks
from jaxrl.networks.actor_critic import only_value_reads
from jaxrl.networks.update_rules import DECAYS, UpdateRule
from jaxrl.ops.optimizers import Optimizer, adam
from jaxrl.types import Algorithm, Key, memoize

DIRECTIONS = ("-g", *(f"-m, β = {decay}" for decay in DECAYS), "Adam")
"""What steps are compared with: the gradient and its averages with OPEN's decays, all downhill, and Adam's step."""

PARTS = ("policy", "value")
"""Parameters that the policy reads, and those that the value alone reads."""


class Watched(NamedTuple):
    """State of a watched optimizer; P parameters, in the order of the tree's leaves.

    Attributes:
      inner: the optimizer's own.
      adam: that of Adam on the same gradients.
      moments: averages of the gradient, [P, 6].
      cosines: sums over updates, [2, 8], by `PARTS` and `DIRECTIONS`.
      num_updates: of them.
    """

    inner: Any
    adam: Any
    moments: Float[Array, "P 6"]
    cosines: Float[Array, "2 8"]
    num_updates: Float[Array, ""]


@memoize
def watched(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, whose state is a `Watched`.

        cos(u, d) = u·d / (|u| |d|) of each part's parameters, NaN where one of them is 0
        m_β ← β m_β + (1 - β) g,  g clipped to `max_grad_norm` in each part, as OPEN does

    Adam steps along on the same gradients from moments of its own, as `jaxrl.ops.optimizers.adam`; so of Adam itself
    the last cosine is 1.

    Args:
      optimizer: written or learned, of an algorithm whose parameters are an `ActorCritic`'s.

    Example:
      >>> watched(adam) is watched(adam)
      True
    """
    if isinstance(optimizer, UpdateRule):
        inner = optimizer.transform
        return optimizer._replace(
            transform=lambda weights, norm, key: _watched(inner(weights, norm, key), norm),
            name=f"watched({optimizer.name})",
        )
    return lambda hparams, rate: _watched(optimizer(hparams, rate), hparams.max_grad_norm)


def _watched(transform: optax.GradientTransformation, norm: Array) -> optax.GradientTransformationExtraArgs:
    own = optax.with_extra_args_support(transform)
    other = adam(types.SimpleNamespace(max_grad_norm=norm), jnp.float32(1.0))

    def init(params: PyTree) -> Watched:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        zeros = jnp.zeros((len(PARTS), len(DIRECTIONS)))
        return Watched(own.init(params), other.init(params), jnp.zeros((size, len(DECAYS))), zeros, jnp.float32(0.0))

    def update(updates: PyTree, state: Any, params: PyTree = None, **more: Any) -> tuple[PyTree, Watched]:
        steps, inner = own.update(updates, state.inner, params, **more)
        along, reference = other.update(updates, state.adam, params)
        parts = _parts(updates)
        gradient = _flat(updates)
        lengths = jnp.sqrt(parts @ jnp.square(gradient))
        gradient *= jnp.minimum(1.0, norm / jnp.maximum(lengths, 1e-12)) @ parts
        decays = jnp.float32(DECAYS)[None]
        moments = decays * state.moments + (1.0 - decays) * gradient[:, None]
        directions = jnp.concatenate([-gradient[None], -moments.T, _flat(along)[None]])
        step = _flat(steps)
        products = jnp.einsum("ip,p,dp->id", parts, step, directions)
        sizes = jnp.sqrt((parts @ jnp.square(step))[:, None] * (parts @ jnp.square(directions).T))
        return steps, Watched(inner, reference, moments, state.cosines + products / sizes, state.num_updates + 1.0)

    return optax.GradientTransformationExtraArgs(init, update)


def _flat(tree: PyTree) -> Float[Array, " P"]:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _parts(tree: PyTree) -> Float[Array, "2 P"]:
    """1 where a parameter belongs to the part."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    of_value = np.repeat([only_value_reads(path) for path, _ in found], [leaf.size for _, leaf in found])
    return jnp.asarray(np.stack([~of_value, of_value]), jnp.float32)


class OptimizerTrace(NamedTuple):
    """Means over learners along a training of N iterations.

    Attributes:
      cosines: means over the updates of each iteration, [N, 2, 8], by `PARTS` and `DIRECTIONS`.
      dormant: share of dormant units of each torso after each iteration, [N] by its name.
      outcome: return of the episodes that ended in each iteration, NaN where none did, [N].
    """

    cosines: np.ndarray
    dormant: dict[str, np.ndarray]
    outcome: np.ndarray


def optimizer_trace(
    make: Callable[[Optimizer], Algorithm],
    optimizer: Optimizer,
    num_iterations: int,
    *,
    num_learners: int = 4,
    tasks: Tasks | None = None,
) -> Any:
    """Trains agents by an optimizer and looks at its steps.

    Args:
      make: PPO with an optimizer; where its config has the diagnostic `dormant`, dormancy is measured too.
      optimizer: to look at.
      num_iterations: N.
      num_learners: trained on keys of their own.
      tasks: draws the environment's parameters of each; None: those of the hyperparameters.

    Returns:
      `(key, hparams) -> OptimizerTrace`, to be called from the host.

    Raises:
      ValueError: a count is not positive.

    Example:
      >>> import jaxrl
      >>> from jaxrl.algorithms.ppo import Config
      >>> env = jaxrl.make_env("probe/Credit")
      >>> make = lambda optimizer: jaxrl.ppo(env, optimizer=optimizer, config=Config(num_envs=2, num_steps=4))
      >>> found = optimizer_trace(make, adam, 2, num_learners=1)(jax.random.key(0), make(adam).hyperparams())
      >>> found.cosines[:, :, -1].round(3).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    if num_iterations < 1 or num_learners < 1:
        raise ValueError(
            "optimizer_trace: num_iterations and num_learners must be at least 1; "
            f"got {num_iterations} and {num_learners}."
        )
    agent = make(watched(optimizer))

    def one(key: Key, hparams: Any) -> Any:
        key_task, key_agent = jax.random.split(key)
        if tasks is not None:
            hparams = hparams.replace(env=tasks(key_task))

        def iteration(state: Any, _: None) -> tuple[Any, Any]:
            fresh = state.opt_state._replace(
                cosines=jnp.zeros_like(state.opt_state.cosines), num_updates=jnp.float32(0.0)
            )
            state, metrics = agent.step(state.replace(opt_state=fresh), hparams)
            kept = {name: metrics[name] for name in metrics if name.startswith((_DORMANT, "episode/"))}
            return state, (state.opt_state.cosines / state.opt_state.num_updates, kept)

        return jax.lax.scan(iteration, agent.init(key_agent, hparams), None, num_iterations)[1]

    run = jax.jit(jax.vmap(one, (0, None)))

    def trace(key: Key, hparams: Any) -> OptimizerTrace:
        cosines, metrics = jax.device_get(run(jax.random.split(key, num_learners), hparams))
        means = {name: np.asarray(rows, np.float64).mean(axis=0) for name, rows in metrics.items()}
        dormant = {name.removeprefix(_DORMANT): rows for name, rows in means.items() if name.startswith(_DORMANT)}
        count = means["episode/count"]
        outcome = np.where(count > 0, means["episode/return_sum"] / np.maximum(count, 1e-9), np.nan)
        return OptimizerTrace(np.asarray(cosines, np.float64).mean(axis=0), dormant, outcome)

    return trace


_DORMANT = "features/dormant_"


def plot_optimizers(traces: Sequence[tuple[str, OptimizerTrace]], path: Path | str) -> None:
    """Draws the cosines of each optimizer's steps, one row an optimizer, and below dormancy and return of all.

    Args:
      traces: title and trace of each.
      path: of the picture.

    Raises:
      ValueError: there are none.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not traces:
        raise ValueError("plot_optimizers: traces must have at least one; got none.")
    figure = Figure(figsize=(9.6, 2.7 * (len(traces) + 1)), layout="constrained")
    panels = figure.subplots(len(traces) + 1, 2, squeeze=False)
    shades = colormaps["viridis"](np.linspace(0.95, 0.1, len(DECAYS)))
    colors = ["black", *shades, style.COLORS[1]]
    lines: list[Any] = []
    known = np.concatenate([trace.cosines[np.isfinite(trace.cosines)] for _, trace in traces])
    low = min(-0.2, 1.05 * known.min(initial=0.0))
    for row, (title, trace) in zip(panels, traces, strict=False):
        iterations = np.arange(1, len(trace.cosines) + 1)
        for place, (panel, part) in enumerate(zip(row, PARTS, strict=True)):
            lines = [
                style.line(panel, iterations, trace.cosines[:, place, i], color=color, linewidth=1.1)
                for i, color in enumerate(colors)
            ]
            if not np.isfinite(trace.cosines[:, place]).any():
                words = "steps of length 0, or not finite:\nno direction"
                panel.text(0.5, 0.75, words, transform=panel.transAxes, ha="center", va="center")
                # Without points the axis would be that of an empty panel.
                panel.update_datalim([(1, 0), (len(iterations), 0)])
            panel.set(title=f"{title}: {part}'s parameters", ylim=(low, 1.05))
            style.count_axis(panel, "iteration")
            panel.axhline(0.0, color="gray", linewidth=0.6)
            style.tidy(panel)
        row[0].set_ylabel("cosine of the step with")
    figure.legend(lines, DIRECTIONS, loc="outside right upper", frameon=False, fontsize=8)
    dormancy, returns = panels[-1]
    torsos: dict[str, Any] = {}
    lines = []
    for place, (_, trace) in enumerate(traces):
        color, iterations = style.COLORS[place % len(style.COLORS)], np.arange(1, len(trace.outcome) + 1)
        for dash, (torso, share) in zip(style.DASHES, trace.dormant.items(), strict=False):
            torsos[torso] = Line2D([], [])
            torsos[torso].update_from(style.line(dormancy, iterations, share, color=color, linestyle=dash))
            torsos[torso].set_color("gray")
        lines.append(style.line(returns, iterations, trace.outcome, color=color))
    dormancy.set(title="dormant units", ylabel="share", ylim=(-0.02, 1.02))
    returns.set(title="return of the episodes that ended")
    for panel in (dormancy, returns):
        style.count_axis(panel, "iteration")
        style.tidy(panel)
    if torsos:
        dormancy.legend(torsos.values(), torsos.keys(), frameon=False, fontsize=8)
    titles = [title for title, _ in traces]
    figure.legend(lines, titles, loc="outside right lower", frameon=False, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
