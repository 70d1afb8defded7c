"""Training as a value: `train` is a pure function to jit, vmap and nest; `advance` is the unit of saving."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax

from jaxrl.ops import trees
from jaxrl.types import Algorithm, Hyperparams, Key, Metrics, State


def train(algorithm: Algorithm, num_steps: int) -> Callable[[Key, Hyperparams], tuple[State, Metrics]]:
    """A whole training run as one pure function.

    Args:
      algorithm: what to train.
      num_steps: calls of `algorithm.step`, each of `algorithm.env_steps` transitions.

    Returns:
      `(key, hparams) -> (state, metrics)`; each metric has a leading axis [num_steps]. Python numbers in `hparams`
      are accepted.

    Raises:
      ValueError: `num_steps` is not positive; when the function is traced, the key is not a typed one, or a leaf of the
        hyperparameters has another shape than its default and cannot be used so.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> run = jax.jit(jax.vmap(train(agent, 2), in_axes=(0, None)))
      >>> state, metrics = run(jax.random.split(jax.random.key(0), 3), agent.hyperparams())
      >>> metrics["loss/policy"].shape
      (3, 2)
    """
    _check_steps(num_steps)

    def run(key: Key, hparams: Hyperparams) -> tuple[State, Metrics]:
        _check_key(key)
        hparams = trees.as_arrays(hparams)
        with _shapes_told(algorithm, hparams):
            return _scan(algorithm, algorithm.init(key, hparams), hparams, num_steps)

    return run


def advance(algorithm: Algorithm, state: State, hparams: Hyperparams, num_steps: int) -> tuple[State, Metrics]:
    """Continues training by `num_steps` steps in one compiled program.

    The state is donated: its buffers are reused, so copy it first (`jax.tree.map(jnp.copy, state)`) to keep it.

    Args:
      algorithm: what to train.
      state: from `algorithm.init` or an earlier `advance`.
      hparams: the hyperparameters; Python numbers are accepted.
      num_steps: calls of `algorithm.step`. Each value compiles once.

    Returns:
      The new state, and metrics with a leading axis [num_steps].

    Raises:
      ValueError: `num_steps` is not positive, or a leaf of the hyperparameters has another shape than its default and
        cannot be used so.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> hparams = agent.hyperparams()
      >>> state = agent.init(jax.random.key(0), hparams)
      >>> state, metrics = advance(agent, state, hparams, 2)
      >>> int(state.num_steps)
      2
    """
    _check_steps(num_steps)
    hparams = trees.as_arrays(hparams)
    with _shapes_told(algorithm, hparams):
        return advance_jit(algorithm, state, hparams, num_steps)


@functools.partial(jax.jit, static_argnames=("algorithm", "num_steps"), donate_argnames=("state",))
def advance_jit(algorithm: Algorithm, state: State, hparams: Hyperparams, num_steps: int) -> tuple[State, Metrics]:
    """The jitted core of `advance`, for those who lower and inspect it; `hparams` must be strongly typed."""
    return _scan(algorithm, state, hparams, num_steps)


def _scan(algorithm: Algorithm, state: State, hparams: Hyperparams, num_steps: int) -> tuple[State, Metrics]:
    return jax.lax.scan(lambda state, _: algorithm.step(state, hparams), state, None, num_steps)


def _check_key(key: Key) -> None:
    # Its shape is the algorithm's business: a population takes one key or one for each member.
    if not trees.is_key(key):
        raise ValueError(
            f"train: a typed random key is needed; got dtype {getattr(key, 'dtype', type(key).__name__)}. Make it with "
            "jax.random.key(0), or of a raw one with jax.random.wrap_key_data."
        )


@contextlib.contextmanager
def _shapes_told(algorithm: Algorithm, hparams: Hyperparams) -> Iterator[None]:
    """Where tracing fails, names the hyperparameters that have another shape than their defaults."""
    try:
        yield
    except (TypeError, ValueError) as error:
        usual = trees.named_leaves(jax.eval_shape(algorithm.hyperparams))
        found = {name: leaf.shape for name, leaf in trees.named_leaves(hparams).items()}
        other = [
            f"{name} has shape {shape} instead of {usual[name].shape}"
            for name, shape in found.items()
            if name in usual and shape != usual[name].shape
        ]
        if not other:
            raise
        raise ValueError(
            f"{algorithm.name}: {', '.join(other)}. Several values are mapped over: jax.vmap(run, in_axes=(None, 0)) "
            f"with all leaves stacked, or jaxrl.sweep. What failed: {error}"
        ) from error


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got num_steps = {num_steps}.")
