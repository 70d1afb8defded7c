"""Update rules that are learned: optimizers whose weights are data, where a written one has its constants.

A rule is an `Optimizer` of an algorithm whose hyperparameters have a leaf `optimizer` for its weights, so that
`jaxrl.evolve` finds them. What it sees beside gradients and parameters comes as one extra argument of its `update`
(`UpdateInputs`), which other gradient transformations do not have. What it draws comes from a key in its state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.networks.actor_critic import ActorCritic, is_core, only_value_reads
from jaxrl.networks.torsos import Conv, activation_function
from jaxrl.ops import trees
from jaxrl.types import Key, memoize

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
"""β of OPEN's averages of the gradient."""

NUM_FEATURES = 19

_STEP = 1e-3
_LOG_FLOOR = 1e-13
_RMS_FLOOR = 1e-5
_ACTIVITY_FLOOR = 1e-11
_TORSOS = ("actor", "critic", "torso")


@struct.dataclass
class UpdateInputs:
    """What a learned rule sees beside gradients and parameters: the argument `inputs` of its `update`.

    Attributes:
      training: share of training that has passed: 0 in the first iteration, 1 in the last.
      epoch: share of an iteration's passes over its data: 0 in the first, 1 in the last.
      activity: as `unit_activity` gives it, a tree like the parameters.
    """

    training: Float[Array, ""]
    epoch: Float[Array, ""]
    activity: PyTree


class UpdateRule(NamedTuple):
    """A learned optimizer, in the form that `optimizer=` of an algorithm has.

    Attributes:
      init: `(key) -> weights`.
      transform: `(weights, max_grad_norm, key) -> transformation`. The key is read by `init` of the transformation
        only, and may be None where only `update` is called. `update` needs `params` and `inputs`, an `UpdateInputs`.
      name: for messages.
    """

    init: Callable[[Key], PyTree]
    transform: Callable[[PyTree, Float[Array, ""], Key | None], optax.GradientTransformationExtraArgs]
    name: str

    def __call__(self, hparams: Any, learning_rate: Float[Array, ""]) -> optax.GradientTransformationExtraArgs:
        """The transformation with the weights `hparams.optimizer`; the rule takes the place of a learning rate.

        Raises:
          ValueError: the hyperparameters have no weights.
        """
        del learning_rate
        return self._of(hparams, None)

    def start(self, hparams: Any, params: PyTree, key: Key) -> Any:
        """The state of the transformation at first; as in optax, but with a key."""
        return self._of(hparams, key).init(params)

    def _of(self, hparams: Any, key: Key | None) -> optax.GradientTransformationExtraArgs:
        if not jax.tree.leaves(getattr(hparams, "optimizer", ())):
            raise ValueError(
                f"{self.name}: a learned optimizer has its weights in hparams.optimizer, which is missing or (). "
                "Of the algorithms ppo has it, where the rule itself is the optimizer and not inside of another one."
            )
        return self.transform(hparams.optimizer, hparams.max_grad_norm, key)


def initial_weights(optimizer: Any, key: Key) -> PyTree:
    """The weights that a learned rule begins with; () of any other optimizer."""
    return optimizer.init(key) if isinstance(optimizer, UpdateRule) else ()


def training_share(num_env_steps: Array, horizon: Array, env_steps: int) -> Float[Array, ""]:
    """k / (K - 1) in the k-th of K iterations, counted from 0; 0 throughout if the horizon is infinite.

    Args:
      num_env_steps: so far.
      horizon: environment steps of the training.
      env_steps: of an iteration.

    >>> float(training_share(jnp.float32(30.0), jnp.float32(40.0), 10))
    1.0
    """
    return jnp.minimum(num_env_steps / jnp.maximum(horizon - env_steps, float(env_steps)), 1.0)


def unit_activity(net: ActorCritic, params: PyTree, *inputs: Any) -> PyTree:
    """For each parameter the mean absolute activation of the units that it feeds.

    A unit's activation is what the next layer reads: after the activation function in a torso, the output itself of a
    head. A channel is the unit of a convolution. Parameters that feed no unit of a layer (a free log-deviation, those
    of a recurrent core) have one number, 1.

    Args:
      net: the network.
      params: its parameters.
      *inputs: what it takes after them.

    Returns:
      A tree like `params`, leaves [H] or [1].
    """
    _, captured = net.apply(params, *inputs, capture_intermediates=_is_layer, mutable=["intermediates"])
    layers: Any = captured["intermediates"]
    activate = activation_function(net.activation)

    def of(path: tuple[Any, ...], leaf: Array) -> Array:
        collection, *module, _ = trees.path_name(path).split(".") if len(path) > 2 else ("", "")
        if collection != "params" or is_core(module[0]):
            return jnp.ones(1)
        node, hidden = layers, _is_hidden(module[0])
        for name in module[:-1]:
            node = node[name]
        kind, _, index = module[-1].rpartition("_")
        # What the activation function reads is the last module of a layer.
        norms = [f"{norm}_{index}" for norm in ("LayerNorm", "WeightNorm")] if hidden else []
        last = next((name for name in norms if name in node), module[-1])
        last = f"Dense_{index}" if last not in node and kind in ("LayerNorm", "WeightNorm") else last
        output = node[last]["__call__"][0].astype(jnp.float32)
        level = jnp.abs(activate(output) if hidden else output)
        mean = jnp.mean(level, axis=tuple(range(level.ndim - 1)))
        return mean if mean.shape[-1] == leaf.shape[-1] else jnp.ones(1)

    return jax.tree_util.tree_map_with_path(of, params)


class OpenState(NamedTuple):
    """State of `open_rule`; P parameters, in the order of the tree's leaves.

    Attributes:
      key: of the noise to come.
      moments: averages of the gradient, [P, 6].
      memory: of the recurrent cell, [P, H].
    """

    key: Key
    moments: Float[Array, "P 6"]
    memory: Float[Array, "P H"]


class OpenNetwork(nn.Module):
    """A GRU cell and two dense layers, the same for each parameter.

    Attributes:
      hidden: width of the dense layers.
      memory: width of the cell.
    """

    hidden: int
    memory: int

    @nn.compact
    def __call__(self, memory: Float[Array, "P H"], features: Float[Array, "P F"]) -> tuple[Array, Array]:
        """The memory after the features, and three outputs, [P, 3]."""
        memory, x = nn.GRUCell(self.memory, name="gru")(memory, features)
        for i in range(2):
            x = nn.Dense(self.hidden, name=f"dense_{i}")(x)
            x = jax.nn.relu(nn.LayerNorm(name=f"norm_{i}")(x))
        return memory, nn.Dense(3, name="output")(x)


@memoize
def open_rule(hidden: int = 16, memory: int = 8) -> UpdateRule:
    """OPEN: an update rule of each parameter's own history, and of where and when it is (Goldie et al. 2024).

        m_β ← β m_β + (1 - β) g,   β of `DECAYS`
        h ← GRU(x, h),   o = MLP(h)
        u = 10⁻³ o_0 exp(10⁻³ o_1) + 10⁻³ o_2 ε 1[the parameter is the policy's],   ε ~ N(0, 1)
        p ← p - (u - mean of u over all parameters)

    x are 19 numbers. The first fifteen are p, sign m_β, log(|m_β| + 10⁻¹³), sign g, log(|g| + 10⁻¹³), each divided by
    √(10⁻⁵ + mean of its square over the tensor). Then the share of training that has passed, the share of the layers
    below, the share of passes over the data, and the dormancy: the activity of the unit that the parameter feeds,
    divided by the layer's mean. Gradients are clipped before, those that only the value reads and the others to a norm
    of `max_grad_norm` each. Layers are counted in both networks on their own; those side by side are one.

    Source: arXiv:2407.07082, section 5, in the form that the authors' code has (network.py and train.py).

    Args:
      hidden: width of the dense layers: 16, and 32 in the rule for several tasks.
      memory: width of the cell: 8, and 16 in the rule for several tasks.

    Returns:
      The rule. Its weights begin at 0, where it changes nothing; with the defaults there are 1211. It does not read the
      learning rate.

    Raises:
      ValueError: a width is not positive.

    Example:
      >>> weights = open_rule().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(weights))
      1211
    """
    if hidden < 1 or memory < 1:
        raise ValueError(f"open_rule: widths must be at least 1; got hidden = {hidden}, memory = {memory}.")
    network = OpenNetwork(hidden, memory)

    def init(key: Key) -> PyTree:
        shapes = jax.eval_shape(network.init, key, jnp.zeros((1, memory)), jnp.zeros((1, NUM_FEATURES)))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    def transform(
        weights: PyTree, max_grad_norm: Float[Array, ""], key: Key | None
    ) -> optax.GradientTransformationExtraArgs:
        def start(params: PyTree) -> OpenState:
            if key is None:
                raise ValueError("open_rule: the state needs a key: rule.start(hparams, params, key).")
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            return OpenState(key, jnp.zeros((size, len(DECAYS))), jnp.zeros((size, memory)))

        def update(
            updates: PyTree, state: Any, params: PyTree = None, *, inputs: UpdateInputs | None = None, **_: Any
        ) -> tuple[PyTree, OpenState]:
            if params is None or inputs is None:
                raise ValueError("open_rule: update needs params and inputs, an UpdateInputs.")
            of_policy = _of_policy(params)
            gradient = _clipped(_flat(updates), of_policy, max_grad_norm)
            decays = jnp.float32(DECAYS)[None]
            moments = decays * state.moments + (1.0 - decays) * gradient[:, None]
            features = open_features(params, gradient, moments, inputs)
            applied: Any = network.apply(weights, state.memory, features)
            cell, output = applied
            key_next, key_noise = jax.random.split(state.key)
            noise = jax.random.normal(key_noise, gradient.shape) * of_policy
            step = open_step(output, noise)
            return _like(params, -step), OpenState(key_next, moments, cell)

        return optax.GradientTransformationExtraArgs(start, update)

    return UpdateRule(init, transform, "open_rule")


def open_features(
    params: PyTree, gradient: Float[Array, " P"], moments: Float[Array, "P 6"], inputs: UpdateInputs
) -> Float[Array, "P 19"]:
    """What OPEN sees of each parameter, in the order of `open_rule`.

    Args:
      params: of an `ActorCritic`.
      gradient: clipped, in the order of the tree's leaves.
      moments: after this gradient.
      inputs: where and when.
    """
    log = lambda x: jnp.log(jnp.abs(x) + _LOG_FLOOR)
    history = jnp.concatenate(
        [
            _flat(params)[:, None],
            jnp.sign(moments),
            log(moments),
            jnp.sign(gradient)[:, None],
            log(gradient)[:, None],
        ],
        axis=-1,
    )
    leaves = jax.tree.leaves(params)
    parts = jnp.split(history, np.cumsum([leaf.size for leaf in leaves])[:-1])
    normalized = [x * jax.lax.rsqrt(_RMS_FLOOR + jnp.mean(jnp.square(x), axis=0, keepdims=True)) for x in parts]

    def dormancy(activity: Array, leaf: Array) -> Array:
        level = activity + _ACTIVITY_FLOOR
        score = level / jnp.sum(jnp.abs(level)) * level.size
        return jnp.broadcast_to(score.reshape((1,) * (leaf.ndim - score.ndim) + score.shape), leaf.shape)

    when = lambda x: jnp.broadcast_to(x, gradient.shape)
    where = [
        when(inputs.training),
        jnp.asarray(np.repeat(layer_shares(params), [leaf.size for leaf in leaves]), jnp.float32),
        when(inputs.epoch),
        _flat(jax.tree.map(dormancy, inputs.activity, params)),
    ]
    return jnp.concatenate([jnp.concatenate(normalized), jnp.stack(where, axis=-1)], axis=-1)


def open_step(output: Float[Array, "P 3"], noise: Float[Array, " P"]) -> Float[Array, " P"]:
    """What OPEN takes off each parameter: u less its mean.

    Args:
      output: of the network.
      noise: ε, 0 for the value's parameters.
    """
    step = _STEP * output[:, 0] * jnp.exp(_STEP * output[:, 1]) + _STEP * output[:, 2] * noise
    return step - jnp.mean(step)


def layer_shares(params: PyTree) -> list[float]:
    """i / (L - 1) of the i-th of L layers that each leaf belongs to, counted from the observation.

    Leaves that only the value reads are one network, all others another. Free parameters are a layer of their own, the
    last one; heads side by side are one layer.

    Args:
      params: of an `ActorCritic`.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    shares: dict[int, float] = {}
    for network in (True, False):
        layers = {i: _layer(path) for i, path in enumerate(paths) if only_value_reads(path) == network}
        order = sorted(set(layers.values()))
        shares |= {i: order.index(layer) / max(len(order) - 1, 1) for i, layer in layers.items()}
    return [shares[i] for i in range(len(paths))]


def open_weights(source: str | Path | np.ndarray | Array, hidden: int = 16, memory: int = 8) -> PyTree:
    """Weights of `open_rule` from the flat vector in which the authors publish them.

    Args:
      source: the vector, or the path of a `.npy` file of it (`breakout_OPEN.npy`).
      hidden: as `open_rule` has it; 32 for `multi_OPEN.npy`.
      memory: as `open_rule` has it; 16 for `multi_OPEN.npy`.

    Raises:
      ValueError: the vector has another length than the rule has weights.

    Example:
      >>> tree = open_weights(np.arange(1211.0))
      >>> tree["params"]["gru"]["hn"]["bias"][:2].tolist(), tree["params"]["output"]["kernel"][-1, -1].item()
      ([0.0, 1.0], 1210.0)
    """
    flat = np.load(source) if isinstance(source, str | Path) else np.asarray(source)
    shapes = jax.eval_shape(open_rule(hidden, memory).init, jax.random.key(0))["params"]
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    if flat.shape != (size,):
        raise ValueError(
            f"open_weights: a rule with hidden = {hidden}, memory = {memory} has {size} weights; got an array of shape "
            f"{flat.shape}. The rule for several tasks (multi_OPEN.npy) has hidden = 32, memory = 16."
        )
    weights, start = {}, 0
    for name in ("gru", "dense_0", "norm_0", "dense_1", "norm_1", "output"):
        leaves, structure = jax.tree.flatten(shapes[name])
        filled = []
        for leaf in leaves:
            filled.append(jnp.asarray(flat[start : start + leaf.size].reshape(leaf.shape), jnp.float32))
            start += leaf.size
        weights[name] = jax.tree.unflatten(structure, filled)
    return {"params": weights}


def _is_layer(module: nn.Module, method: str) -> bool:
    return method == "__call__" and isinstance(module, Conv | nn.Dense | nn.LayerNorm | nn.WeightNorm)


def _is_hidden(name: str) -> bool:
    return name in _TORSOS or name.endswith("encoder")


def _layer(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key by which layers sort."""
    collection, *module, _ = trees.path_name(path).split(".") if len(path) > 2 else ("", "")
    if collection != "params":
        return (4,)
    if not _is_hidden(module[0]):
        return (2,) if is_core(module[0]) else (3,)

    def place(name: str) -> tuple[int, int]:
        kind, _, index = name.rpartition("_")
        return (0 if kind in ("CNN", "Conv") else 1, int(index))

    return (int(not module[0].endswith("encoder")), *(place(name) for name in module[1:]))


def _of_policy(params: PyTree) -> Float[Array, " P"]:
    """1 for each parameter but those that only the value reads, which have 0."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    flags = [float(not only_value_reads(path)) for path, _ in found]
    return jnp.asarray(np.repeat(flags, [leaf.size for _, leaf in found]), jnp.float32)


def _clipped(gradient: Float[Array, " P"], of_policy: Float[Array, " P"], most: Array) -> Float[Array, " P"]:
    def factor(part: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(part * jnp.square(gradient)))
        return jnp.where(norm < most, 1.0, most / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))

    return gradient * (of_policy * factor(of_policy) + (1.0 - of_policy) * factor(1.0 - of_policy))


def _flat(tree: PyTree) -> Float[Array, " P"]:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _like(tree: PyTree, flat: Float[Array, " P"]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    parts = jnp.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
