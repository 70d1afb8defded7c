"""Diagnostics of learning: metrics that an algorithm computes where its config names them.

They read and change nothing: no draw, no parameter and no rounding of the training depends on them, and a name that is
not given adds nothing to the program. `measure` looks at the network after an iteration's update, on the observations
of that iteration's rollout; `gradient_noise` at the gradients before it.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxrl import spaces
from jaxrl.networks import ActorCritic
from jaxrl.networks.actor_critic import is_core
from jaxrl.networks.torsos import CNN, MLP, Conv, activation_function
from jaxrl.types import Key, Metrics

NAMES = ("gradient_noise", "dormant", "effective_rank", "churn", "kl", "staleness")

TAU = 0.025
"""Score up to which a unit is dormant."""

DELTA = 0.01
"""Share of the sum of singular values that the effective rank leaves out."""

MAX_SAMPLES = 1024
"""Observations, spread evenly over the rollout, that an effective rank is computed from at most."""


_MOST_PARTS = 8


def num_parts(config: Any, recurrent: bool) -> int:
    """Parts of a rollout whose gradients `gradient_noise` compares; 1 where there are no parts of one size.

    They are the minibatches; where there is only one, as many equal parts of it as there can be, 8 at most.

    Args:
      config: with num_minibatches, num_envs and num_steps.
      recurrent: whether a part is of whole environments.
    """
    if config.num_minibatches > 1:
        return config.num_minibatches
    size = config.num_envs if recurrent else config.num_envs * config.num_steps
    return max(parts for parts in range(1, _MOST_PARTS + 1) if size % parts == 0)


def validate(owner: str, names: Any, net: ActorCritic, parts: int, actor_lag: int | None = None) -> None:
    """Checks the diagnostics that a config asks for.

    Args:
      owner: the algorithm, for the message.
      names: of the diagnostics.
      net: the network that they look at.
      parts: of a rollout, as `num_parts` counts them.
      actor_lag: iterations by which the policy that acts is behind; None where an algorithm has no such thing.

    Raises:
      ValueError: the names are no tuple, one is unknown or comes twice, or one cannot be computed in this setting.
    """
    if not isinstance(names, tuple) or len(set(names)) < len(names) or not set(names) <= set(NAMES):
        raise ValueError(
            f"{owner}: diagnostics must be a tuple of different names among {', '.join(NAMES)}; "
            f"got diagnostics = {names!r}."
        )
    if "gradient_noise" in names and parts < 2:
        raise ValueError(
            f"{owner}: the diagnostic 'gradient_noise' compares equal parts of a rollout, and this one has none: give "
            "it num_minibatches of at least 2, or one minibatch of num_envs * num_steps (with a memory num_envs) "
            "that a number from 2 to 8 divides."
        )
    if "staleness" in names and not actor_lag:
        why = "which this algorithm has not" if actor_lag is None else f"got actor_lag = {actor_lag}"
        raise ValueError(
            f"{owner}: the diagnostic 'staleness' is 0 unless an older policy acts: it needs an actor_lag of at least "
            f"1; {why}."
        )
    space = net.action_space
    if "churn" in names and isinstance(space, spaces.Box) and not space.bounded:
        raise ValueError(
            f"{owner}: the diagnostic 'churn' is in units of the range of actions, so it needs finite bounds; "
            f"got {space}."
        )
    if "dormant" in names and not (net.hidden or (net.convolve and _has_image(net.observation_space))):
        raise ValueError(
            f"{owner}: the diagnostic 'dormant' needs a torso with at least one layer; got hidden = {net.hidden}."
        )


def gradient_noise(
    key: Key,
    gradient: Callable[[Any], PyTree],
    shuffled: Callable[[Key], Any],
    num_samples: int,
) -> Metrics:
    """Estimates the simple noise scale from the gradients of the parts of one rollout, at fixed parameters.

        tr Σ  ≈  b / (M - 1) · Σ_i |g_i - ḡ|²
        |G|²  ≈  |ḡ|² - tr Σ / N
        B_simple = tr Σ / |G|²

    These are the unbiased estimates of McCandlish et al. 2018 (arXiv:1812.06162, appendix A.1) with the batch sizes
    b = N / M and N, where the gradient of the larger batch is the mean ḡ of the parts' and its squared distances
    are summed directly, which loses no digits. The ratio is biased, and the estimate of |G|² may be negative; then the
    ratio is given as infinite. Average the two ingredients over iterations, then divide.

    Args:
      key: that the iteration began with. A key is folded out of it, so that no draw of the iteration changes.
      gradient: of one part.
      shuffled: `key -> parts`, leaves [M, ...].
      num_samples: N, samples of all parts together.

    Returns:
      `gradient/noise_scale` in samples, `gradient/noise_trace` (tr Σ of one sample's gradient) and
      `gradient/squared_norm` (|G|²), shape ().
    """
    # Past every index that a split of this key has used.
    parts = shuffled(jax.random.fold_in(key, 2**31 - 1))
    num_parts = jax.tree.leaves(parts)[0].shape[0]
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        count, mean, squares = carry
        one = gradient(part)
        before = optax.tree.sub(one, mean)
        mean = jax.tree.map(lambda m, d: m + d / (count + 1.0), mean, before)
        return (count + 1.0, mean, squares + optax.tree.vdot(before, optax.tree.sub(one, mean))), None

    (_, mean, squares), _ = jax.lax.scan(add, (jnp.float32(0.0), zeros, jnp.float32(0.0)), parts)
    trace = squares * (num_samples / num_parts / (num_parts - 1))
    squared_norm = optax.tree.vdot(mean, mean) - trace / num_samples
    known = squared_norm > 0
    return {
        "gradient/noise_scale": jnp.where(known, trace / jnp.where(known, squared_norm, 1.0), jnp.inf),
        "gradient/noise_trace": trace,
        "gradient/squared_norm": squared_norm,
    }


def measure(
    names: tuple[str, ...],
    net: ActorCritic,
    inputs: tuple[Any, ...],
    before: Any,
    params: PyTree,
    acting_params: PyTree = None,
) -> Metrics:
    """Looks at the policy before and the network after one iteration, on its rollout.

    Args:
      names: of diagnostics; those of `gradient_noise` are another function's.
      net: the network.
      inputs: what it takes after its parameters: observations [T, B, ...], memory [B, ...] and starts [T, B].
      before: the policy that began the iteration, on these inputs, batch shape [T, B].
      params: after the iteration's update.
      acting_params: of the policy that acted; read by `staleness` only.

    Returns:
      Metrics of shape (): `policy/staleness`, `policy/kl_exact`, `policy/churn`, and for each torso
      `features/dormant_<torso>` and `features/rank_<torso>`. Without names there are none, and nothing is traced.
    """
    metrics: Metrics = {}
    if not set(names) - {"gradient_noise"}:
        return metrics
    # The compiler must not fuse what follows with the training, which would round otherwise then.
    inputs, before, params, acting_params = jax.lax.optimization_barrier((inputs, before, params, acting_params))
    if "staleness" in names:
        behavior = net.apply(acting_params, *inputs)[0].policy  # type: ignore[index]
        metrics["policy/staleness"] = jnp.mean(behavior.kl(before))
    if set(names) <= {"gradient_noise", "staleness"}:
        return metrics
    (output, _), captured = net.apply(params, *inputs, capture_intermediates=_is_kept, mutable=["intermediates"])  # type: ignore[misc]
    layers = captured["intermediates"]
    if "kl" in names:
        metrics["policy/kl_exact"] = jnp.mean(before.kl(output.policy))
    if "churn" in names:
        metrics["policy/churn"] = policy_churn(net.action_space, before, output.policy)
    if "dormant" in names:
        for torso, activations in torso_activations(net, layers).items():
            metrics[f"features/dormant_{torso}"] = dormant_share(activations)
    if "effective_rank" in names:
        for torso, features in last_features(layers).items():
            metrics[f"features/rank_{torso}"] = effective_rank(features)
    return metrics


def policy_churn(space: spaces.Space, before: Any, after: Any) -> Float[Array, ""]:
    """How much of the greedy policy one update changed.

    Of discrete actions the share of states whose greedy action is another one (Schaul et al. 2022, arXiv:2206.00730);
    of a bounded `Box` the mean absolute change of the mode, clipped to the bounds, in units of the range from bound to
    bound.

    Args:
      space: of the actions.
      before: a distribution, batch shape [...].
      after: another one.

    Returns:
      A number from 0 to 1.
    """
    one, other = before.mode(), after.mode()
    if isinstance(space, spaces.Box):
        return 0.5 * jnp.mean(jnp.abs(jnp.clip(one, -1.0, 1.0) - jnp.clip(other, -1.0, 1.0)))
    changed = one != other
    if isinstance(space, spaces.MultiDiscrete):
        changed = jnp.any(changed, axis=-1)
    return jnp.mean(changed.astype(jnp.float32))


def dormant_share(activations: list[Float[Array, "..."]], tau: float = TAU) -> Float[Array, ""]:
    """Share of the units of some layers that are τ-dormant.

        s_i = E|h_i| / (1/H Σ_k E|h_k|) ≤ τ

    Source: Sokar et al. 2023, arXiv:2302.12902, equation 1 and definition 3.2. A unit of a convolution is a channel,
    its expectation also over positions. In a layer that is silent as a whole every unit is dormant.

    Args:
      activations: h of each layer, after the activation function, [..., H].
      tau: τ.

    >>> float(dormant_share([jnp.array([[0.0, 1.0], [0.0, 2.0]])]))
    0.5
    """
    num_dormant, num_units = jnp.float32(0.0), 0
    for layer in activations:
        level = jnp.mean(jnp.abs(layer.astype(jnp.float32)), axis=tuple(range(layer.ndim - 1)))
        num_dormant += jnp.sum((level <= tau * jnp.mean(level)).astype(jnp.float32))
        num_units += level.size
    return num_dormant / num_units


def effective_rank(
    features: Float[Array, "... D"], delta: float = DELTA, max_samples: int = MAX_SAMPLES
) -> Float[Array, ""]:
    """The least number of singular values that make up a share 1 - δ of the sum of all.

        srank_δ(Φ) = min {k : Σ_{i≤k} σ_i ≥ (1 - δ) Σ_i σ_i}

    Source: Kumar et al. 2021, arXiv:2010.14498, equation 1. One matrix at a time is decomposed, also under `vmap`.

    Args:
      features: Φ, one row for each observation.
      delta: δ.
      max_samples: rows read at most, spread evenly; the rank is at most this and D.

    Returns:
      A whole number as float32, 0 for Φ = 0 and NaN where Φ is not finite.

    >>> float(effective_rank(jnp.eye(3)))
    3.0
    """
    rows = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    rows = rows[spread(rows.shape[0], max_samples)]
    values = _singular_values(rows)
    total = jnp.sum(values)
    rank = jnp.sum((jnp.cumsum(values) < (1.0 - delta) * total).astype(jnp.float32)) + (total > 0).astype(jnp.float32)
    return jnp.where(jnp.isfinite(total), rank, jnp.nan)


def spread(num: int, most: int) -> np.ndarray:
    """At most `most` different numbers below `num`, spread evenly and without a period.

    Every second of [T, B] rows would be those of half of the environments, so the steps are of the golden ratio.

    >>> spread(10, 4).tolist()
    [0, 7, 4, 1]
    """
    if num <= most:
        return np.arange(num)
    stride = next(step for step in range(math.ceil(num * 0.618), num) if math.gcd(step, num) == 1)
    return np.arange(most, dtype=np.int64) * stride % num


def torso_activations(net: ActorCritic, layers: Any) -> dict[str, list[Array]]:
    """Activations of all layers of each torso and each encoder that has any.

    Args:
      net: the network.
      layers: what its modules put out, as flax captures them.
    """
    activate = activation_function(net.activation)

    def below(node: Any) -> list[Array]:
        found = [h for name, inner in node.items() if name.startswith("CNN") for h in below(inner)]
        # What the activation function reads is the last module of a layer.
        for kinds in (("Conv",), ("LayerNorm", "WeightNorm", "Dense")):
            layers_of_node = (
                next((node[f"{kind}_{i}"] for kind in kinds if f"{kind}_{i}" in node), None) for i in range(len(node))
            )
            found += [activate(layer["__call__"][0]) for layer in layers_of_node if layer is not None]
        return found

    torsos = {name: below(node) for name, node in layers.items() if not is_core(name) and isinstance(node, dict)}
    return {name: activations for name, activations in torsos.items() if activations}


def last_features(layers: Any) -> dict[str, Float[Array, "... D"]]:
    """What the heads read: the outputs of the two torsos, or of the recurrent cores."""
    if cores := {name: node["__call__"][0][1] for name, node in layers.items() if is_core(name)}:
        return cores
    return {name: layers[name]["__call__"][0] for name in ("actor", "critic")}


@jax.custom_batching.sequential_vmap
def _singular_values(x: Float[Array, "N D"]) -> Float[Array, " 2K"]:
    """Singular values, greatest first, K = min(N, D) and as many zeros, from eigenvalues of Gram matrices in two steps.

    In float32 the roots of eigenvalues of XᵀX below 3e-4 of the greatest are rounding errors, and some hundred of them
    weigh more than δ. So those below 1e-2 come from a Gram matrix of their own, that of X on the small eigenvectors,
    which moves the limit to 3e-6.
    """
    # Two batched LAPACK calls at once can wait for each other forever (jaxlib 0.10.2), hence one matrix at a time. A
    # singular value decomposition is exact too, but its threads make it several hundred times slower on a busy CPU.
    x = x.T if x.shape[0] < x.shape[1] else x
    with jax.default_matmul_precision("float32"):
        squares, vectors = jnp.linalg.eigh(x.T @ x)
        small = squares < 1e-4 * jnp.max(squares)
        rest = jnp.where(small[None], x @ vectors, 0.0)
        squares = jnp.concatenate([jnp.where(small, 0.0, squares), jnp.linalg.eigvalsh(rest.T @ rest)])
    return jnp.sqrt(jnp.maximum(jnp.sort(squares)[::-1], 0.0))


def _is_kept(module: nn.Module, method: str) -> bool:
    kinds = (MLP, CNN, Conv, nn.Dense, nn.LayerNorm, nn.WeightNorm)
    return method == "__call__" and (isinstance(module, kinds) or is_core(module.name or ""))


def _has_image(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Dict):
        return any(_has_image(part) for name, part in space.spaces if name != "action_mask")
    return isinstance(space, spaces.Box) and len(space.shape) == 3
