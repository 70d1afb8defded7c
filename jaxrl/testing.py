"""The laws of an algorithm, checked for one of your own.

    check_algorithm(my_algorithm)

raises `LawError`, which names every law that is broken, and where. The same laws hold for everything that is registered
(`tests/contract/`), with more care about options; here nothing has to be registered, and small networks and few
environments make it quick: three programs are compiled.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxrl.ops import trees
from jaxrl.training import advance, train
from jaxrl.types import Algorithm, Hyperparams


class LawError(AssertionError):
    """An algorithm breaks laws; `violations` has a line for each."""

    def __init__(self, name: str, violations: Sequence[str]):
        self.violations = tuple(violations)
        lines = "\n".join(f"  - {line}" for line in violations)
        super().__init__(f"{name} breaks {len(violations)} of the laws of an algorithm:\n{lines}")


def check_algorithm(
    algorithm: Algorithm,
    hparams: Hyperparams | None = None,
    *,
    num_steps: int = 3,
    inert: Sequence[str] = (),
    rtol: float = 2e-3,
    atol: float = 2e-4,
) -> None:
    """Checks an algorithm against the laws that make it vmap, save, resume and sweep.

    1. `step` keeps the type of the state: tree, shapes, dtypes, weak types; no leaf is weakly typed.
    2. The state holds a typed key; the same key gives the same bits, another key other parameters; none is used twice.
    3. vmap over keys and over all leaves of the hyperparameters equals the loop.
    4. A state that went to the host and back continues as if it had not, bit for bit.
    5. There is no conditional in `step`: under vmap both of its branches run.
    6. Every parameter moves, and every leaf of the hyperparameters changes the result.

    What the laws cannot see is whether it learns. Parameters are the leaves of an attribute `params` of the state, or
    all of its floating-point leaves if it has none.

    Args:
      algorithm: with small networks and few environments.
      hparams: None: its defaults.
      num_steps: steps of each run; as many as it takes until everything has an effect.
      inert: dotted paths of hyperparameters that need not matter here, such as a coefficient that this configuration
        does not use, and of parameters that need not move; a path stands for all that is below it.
      rtol: relative tolerance of law 3; a batched matrix product sums in another order.
      atol: absolute tolerance of law 3.

    Raises:
      LawError: a law is broken.

    Example:
      >>> import jaxrl
      >>> from jaxrl.algorithms.ppo import Config
      >>> from jaxrl.networks import NetworkConfig
      >>> config = Config(num_envs=2, num_steps=8, num_minibatches=1, network=NetworkConfig(hidden=(4,)))
      >>> agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"), config=config)
      >>> hparams = agent.hyperparams(learning_rate=0.1, horizon=100.0)
      >>> check_algorithm(agent, hparams, inert=("proximal_decay", "advantage_decay", "target_kl"))
    """
    hparams = trees.as_arrays(algorithm.hyperparams() if hparams is None else hparams)
    violations = list(_of_the_trace(algorithm, hparams))
    if not violations:  # otherwise nothing can be run for several steps
        violations = list(_of_the_runs(algorithm, hparams, num_steps, tuple(inert), rtol, atol))
    if violations:
        raise LawError(algorithm.name, violations)


def kind(tree: PyTree) -> tuple[Any, list[tuple[Any, ...]]]:
    """Structure, shapes, dtypes and weak types: what a step must keep."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def count_conditionals(jaxpr: Any) -> int:
    """Conditionals in a traced program, in its loops too."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "cond"
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += count_conditionals(inner)
    return total


def plain(tree: PyTree) -> PyTree:
    """The tree as NumPy arrays, keys as their words."""
    words = jax.tree.map(lambda x: jax.random.key_data(x) if trees.is_key(x) else x, tree)
    return jax.tree.map(np.asarray, words)


def changed_leaf(leaf: jax.Array) -> jax.Array:
    """Another value of a hyperparameter, of the same type."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.where(leaf == 0, 0.5, leaf * 0.5).astype(leaf.dtype)
    return ~leaf if leaf.dtype == jnp.bool_ else leaf + 1


def _of_the_trace(algorithm: Algorithm, hparams: Hyperparams) -> Iterator[str]:
    """Laws 1, 2 and 5, as far as they show without running."""
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key, hparams)
    for path, leaf in trees.named_leaves(state).items():
        if leaf.weak_type:
            yield f"law 1: init's {path} is weakly typed: give it a dtype, as in jnp.float32(0)"
    if not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
        yield "law 2: the state holds no typed key: keep one from jax.random.key, and split it in each step"
    traced = jax.jit(algorithm.step).trace(state, hparams)
    yield from _different_types(state, jax.tree.map(lambda x: x, traced.out_info)[0])
    if number := count_conditionals(traced.jaxpr.jaxpr):
        yield f"law 5: step has {number} lax.cond: under vmap both branches run; use a weight, or a nested scan"
    try:
        with jax.debug_key_reuse(True):
            # Two steps: a key may be used in the first and kept for the second.
            jax.jit(
                lambda key, hparams: algorithm.step(algorithm.step(algorithm.init(key, hparams), hparams)[0], hparams)
            ).lower(key, hparams)
    except jax.errors.KeyReuseError as error:
        yield f"law 2: a key is used twice: {str(error).splitlines()[0]}"


def _different_types(before: PyTree, after: PyTree) -> Iterator[str]:
    if kind(before) == kind(after):
        return
    old, new = trees.named_leaves(before), trees.named_leaves(after)
    for path in [*old, *(path for path in new if path not in old)]:
        texts = [
            f"{leaf.dtype}{list(leaf.shape)}{' weak' if leaf.weak_type else ''}" if leaf is not None else "nothing"
            for leaf in (old.get(path), new.get(path))
        ]
        if texts[0] != texts[1]:
            yield f"law 1: {path} is {texts[0]} after init and {texts[1]} after step"
    if list(old) == list(new) and jax.tree.structure(before) != jax.tree.structure(after):
        yield f"law 1: the state is {jax.tree.structure(before)} after init, {jax.tree.structure(after)} after step"


def _of_the_runs(
    algorithm: Algorithm, hparams: Hyperparams, num_steps: int, inert: tuple[str, ...], rtol: float, atol: float
) -> Iterator[str]:
    """Laws 2, 3, 4 and 6."""
    init = jax.jit(algorithm.init)
    run = lambda key, hparams: advance(algorithm, init(jax.random.key(key), hparams), hparams, num_steps)
    first, alone = plain(init(jax.random.key(0), hparams)), run(0, hparams)
    kept = plain(alone)
    members = dict(_members(hparams))
    other = members["all"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), hparams, *members.values())
    keys = jnp.stack([jax.random.key(0)] * len(members) + [jax.random.key(7)])
    together = plain(jax.jit(jax.vmap(train(algorithm, num_steps)))(keys, stacked))

    # --- Law 2 ---------------------------------------------------------------------------------------------------
    for path in _differing(kept, plain(run(0, hparams)), np.array_equal):
        yield f"law 2: {path} differs between two runs from one key"
    drawn = _parameters(plain(init(jax.random.key(1), hparams)))
    moved, begun = _parameters(kept[0]), _parameters(first)
    if all(np.array_equal(leaf, drawn[path]) for path, leaf in begun.items()):
        yield "law 2: two keys give the same parameters"

    # --- Law 3 ---------------------------------------------------------------------------------------------------
    close = lambda a, b: np.allclose(a, b, rtol, atol, equal_nan=True)
    for index, single, what in ((0, kept, "key 0"), (-1, plain(run(7, other)), "key 7, all hyperparameters changed")):
        one = jax.tree.map(lambda x, index=index: x[index], together)
        for path in _differing(one, single, close):
            yield f"law 3: {path} differs between vmap and the loop ({what})"

    # --- Law 4 ---------------------------------------------------------------------------------------------------
    back = jax.tree.map(lambda x: jnp.copy(x) if trees.is_key(x) else jnp.asarray(np.asarray(x)), alone[0])
    continued = plain(advance(algorithm, back, hparams, num_steps))
    for path in _differing(continued, plain(advance(algorithm, alone[0], hparams, num_steps)), np.array_equal):
        yield f"law 4: {path} differs after the state went to the host and back"

    # --- Law 6 ---------------------------------------------------------------------------------------------------
    for path, leaf in begun.items():
        if not _is_below(path, inert) and np.array_equal(leaf, moved[path]):
            yield f"law 6: parameter {path} does not move in {num_steps} steps"
    results = trees.named_leaves(together[0])
    for index, name in enumerate(list(members)[:-1], 1):
        if not _is_below(name, inert) and all(np.array_equal(leaf[0], leaf[index]) for leaf in results.values()):
            yield f"law 6: hyperparameter {name} changes nothing in {num_steps} steps"


def _members(hparams: Hyperparams) -> Iterator[tuple[str, Hyperparams]]:
    """Hyperparameters with one leaf changed each, by its name, and at last all of them nudged."""
    for name, leaf in trees.named_leaves(hparams).items():
        yield name, trees.replace_leaf(hparams, name, changed_leaf(leaf))
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    yield "all", jax.tree.map(lambda leaf: (leaf * 1.1).astype(leaf.dtype) if floating(leaf) else leaf, hparams)


def _is_below(path: str, above: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in above)


def _parameters(state: PyTree) -> dict[str, np.ndarray]:
    if hasattr(state, "params"):
        return trees.named_leaves(state.params)
    return {name: leaf for name, leaf in trees.named_leaves(state).items() if np.issubdtype(leaf.dtype, np.floating)}


def _differing(one: PyTree, other: PyTree, same: Callable[[Any, Any], bool]) -> list[str]:
    left, right = trees.named_leaves(one), trees.named_leaves(other)
    return [path for path, leaf in left.items() if not same(leaf, right[path])]
