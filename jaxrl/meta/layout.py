"""How the members of a population are laid out on the machine: over how many devices, how many at a time."""

from typing import NamedTuple

import jax

from jaxrl import memory
from jaxrl.types import Algorithm, Hyperparams

# On a CPU, members are vmapped together while their arrays of one iteration take no more than this: with CartPole's
# 0.6 MB a member 16 at a time were fastest, with Breakout's 48 MB one. `scripts/bench.py --suite layouts` measures it.
_CPU_CHUNK_BYTES = 16 * 2**20
_CPU_CHUNK = 16


class Layout(NamedTuple):
    """Arguments of `population` of the same names.

    Attributes:
      num_devices: that the members are spread over.
      chunk: members vmapped together on each of them; None: all.
    """

    num_devices: int = 1
    chunk: int | None = None

    @property
    def multiple(self) -> int:
        """The number of members must be divisible by this."""
        return self.num_devices * (self.chunk or 1)


def choose_layout(member: Algorithm, hparams: Hyperparams, num_members: int, exact: bool = True) -> Layout:
    """Chooses the layout that is fastest as far as measured: docs/sweeps.md has the figures.

    On GPU and TPU all members of a device are vmapped (not measured); on a CPU small chunks, and every device that the
    process was given (`jax_num_cpu_devices`, one a core in the `jaxrl` command) takes its part.

    Args:
      member: the algorithm of one member.
      hparams: its hyperparameters; only shapes matter.
      num_members: P.
      exact: whether P must be divisible by the layout's `multiple`; else the caller pads.

    Returns:
      The layout. Nothing is compiled.

    Example:
      >>> import jaxrl
      >>> agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
      >>> choose_layout(agent, agent.hyperparams(), 1)
      Layout(num_devices=1, chunk=1)
    """
    devices = _largest(jax.device_count(), num_members, exact)
    if jax.default_backend() != "cpu":
        return Layout(devices, None)
    step = memory.estimate(member, hparams, 1).step
    wanted = max(1, min(_CPU_CHUNK, _CPU_CHUNK_BYTES // max(step, 1)))
    return Layout(devices, _largest(wanted, -(-num_members // devices), exact))


def _largest(at_most: int, number: int, must_divide: bool) -> int:
    """The largest count up to `at_most` and `number`, a divisor of `number` if it must be."""
    candidates = range(1, min(at_most, number) + 1)
    return max(n for n in candidates if not must_divide or number % n == 0)
