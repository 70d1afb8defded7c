"""Losses that evolution found, and losses that are expression graphs, which evolution finds (Co-Reyes et al. 2021)."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxrl.networks.q_network import QOutput
from jaxrl.ops import expressions
from jaxrl.types import memoize
from jaxrl.values.records import Target, ValueHead, expected_return


@struct.dataclass
class Regularized:
    """Coefficients of `dqn_reg`.

    Attributes:
      weight: k of the value that is added to the loss.
    """

    weight: Float[Array, ""]


@memoize
def dqn_reg(weight: float = 0.1) -> ValueHead:
    """One value, the squared error, and the value itself as a penalty: DQNReg.

        L = (Q(s, a) - Y)² + k Q(s, a)

    Its minimum is Y - k/2, so values are too small by design. Source: arXiv:2101.03958, section 4.3; there is no factor
    ½ as `scalar` has one.

    Args:
      weight: default of k.

    Example:
      >>> dqn_reg().init().weight.item()
      0.10000000149011612
    """

    def loss(params: Regularized, output: QOutput, target: Target) -> tuple[Array, Array]:
        value = output.values[:, 0]
        error = value - expected_return(target, _only_value((), target.next))
        return jnp.square(error) + params.weight * value, jnp.abs(error)

    return ValueHead(lambda: Regularized(jnp.float32(weight)), _only_value, loss, 1, "DQNReg")


@memoize
def dqn_clipped() -> ValueHead:
    """One value and a loss of two maxima: DQNClipped.

        L = max(Q(s, a), (Q(s, a) - Y)² + Y) + max(Q(s, a) - Y, γ V'²)

    V' is the successor's value that Y bootstraps from, γ is 0 where the successor is terminal, as in the authors' code.
    Where the error is from 0 to 1 the first part pushes the value down instead of fitting it. Source: arXiv:2101.03958,
    section 4.3.

    Example:
      >>> dqn_clipped().size
      1
    """

    def loss(params: PyTree, output: QOutput, target: Target) -> tuple[Array, Array]:
        value, following = output.values[:, 0], _only_value((), target.next)
        goal = expected_return(target, following)
        shifted = following if target.shift is None else following + target.shift
        bootstrapped = target.discount * jnp.square(jnp.sum(target.weight * shifted, axis=-1))
        error = value - goal
        return jnp.maximum(value, jnp.square(error) + goal) + jnp.maximum(error, bootstrapped), jnp.abs(error)

    return ValueHead(tuple, _only_value, loss, 1, "DQNClipped")


@memoize
def graph(expression: expressions.Expression = expressions.TD, num_nodes: int | None = None) -> ValueHead:
    """One value whose loss is data: a `Program` of `jaxrl.ops.expressions`, which is `hparams.head`.

    All programs of as many nodes are one compiled algorithm: `vmap` over `hparams.head` trains with each its own loss.
    Gradients flow through Q(s, ·) only. The backup decides the priorities of replay and may add a bonus to the reward;
    what the loss bootstraps from is the program's affair. It knows nothing of illegal actions.

    Args:
      expression: the loss at first; `expressions.TD`, `DQN_REG`, `DQN_CLIPPED` or another.
      num_nodes: as for `expressions.program_of`.

    Returns:
      The head; its params are a `Program`.

    Raises:
      ValueError: as `expressions.program_of`.

    Example:
      >>> expressions.describe(graph(("square", ("select", "q", "action"))).init())
      'square(select(q, action))'
    """
    # Memoized, so that it must not hold of a trace inside of which it is first called.
    with jax.ensure_compile_time_eval():
        start = expressions.program_of(expression, num_nodes)

    def loss(params: expressions.Program, output: QOutput, target: Target) -> tuple[Array, Array]:
        if target.action is None or target.online_next is None or target.now is None:
            raise ValueError("graph: the loss reads the values of all actions, which of the algorithms dqn gives only.")
        still = jax.lax.stop_gradient
        of = lambda output: still(_only_value((), output))
        inputs = expressions.LossInputs(
            q=_only_value((), output),
            target_next=of(target.next),
            online_next=of(target.online_next),
            target_now=of(target.now),
            action=target.action,
            reward=target.reward,
            discount=target.discount,
        )
        taken = jnp.take_along_axis(inputs.q, target.action[:, None], axis=-1)[:, 0]
        error = still(taken) - expected_return(target, inputs.target_next)
        return expressions.evaluate(params, inputs), jnp.abs(error)

    return ValueHead(lambda: jax.tree.map(jnp.copy, start), _only_value, loss, 1, "graph", whole=True)


def _only_value(params: PyTree, output: QOutput) -> Array:
    return output.values[..., 0]
