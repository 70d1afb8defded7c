"""Recurrent cores: each maps a sequence and a memory to outputs and the next memory, and forgets at episode starts.

Shared contract: `__call__(memory, x [T, B, D], start [T, B]) -> (memory, y [T, B, size])`; where `start[t, b]` is true,
`x[t, b]` is the first observation of an episode, so the memory is the initial one before it is used.
`initial_memory(batch_shape)` gives the memory of fresh episodes, leaves `[*batch_shape, ...]`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from jaxrl.networks.initializers import orthogonal
from jaxrl.ops import trees
from jaxrl.types import Memory


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    Attributes:
      size: width of memory and output.
    """

    size: int = 128

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> Float[Array, "... H"]:
        """Zeros [*batch_shape, size]."""
        return jnp.zeros((*batch_shape, self.size), jnp.float32)

    @nn.compact
    def __call__(self, memory: Array, x: Float[Array, "T B D"], start: Bool[Array, "T B"]) -> tuple[Array, Array]:
        """Runs the cell over time."""
        # The product with the inputs needs no memory, so it is done for all steps at once, outside the scan.
        gates = nn.Dense(3 * self.size, kernel_init=orthogonal(), name="input")(x)
        kernel = self.param("kernel", orthogonal(), (self.size, 3 * self.size))
        bias = self.param("bias", nn.initializers.zeros, (self.size,))

        def step(h: Array, inputs: tuple[list[Array], Array]) -> tuple[Array, Array]:
            (reset_x, update_x, new_x), first = inputs
            h = jnp.where(first[..., None], 0.0, h)
            reset_h, update_h, new_h = jnp.split(h @ kernel, 3, axis=-1)
            reset = jax.nn.sigmoid(reset_x + reset_h)
            update = jax.nn.sigmoid(update_x + update_h)
            new = jnp.tanh(new_x + reset * (new_h + jnp.broadcast_to(bias, new_h.shape)))
            h = (1 - update) * new + update * h
            return h, h

        # Split here: on a CPU the slices of a slice that the scan takes would halve its speed at 256 units.
        return jax.lax.scan(step, memory, (jnp.split(gates, 3, axis=-1), start))


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), forget gate biased to one.

    Attributes:
      size: width of cell and output.
    """

    size: int = 128

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """Zeros (cell, hidden), each [*batch_shape, size]."""
        # Two arrays: one put into a state twice could not be donated.
        return jnp.zeros((*batch_shape, self.size), jnp.float32), jnp.zeros((*batch_shape, self.size), jnp.float32)

    @nn.compact
    def __call__(self, memory: Any, x: Float[Array, "T B D"], start: Bool[Array, "T B"]) -> tuple[Any, Array]:
        """Runs the cell over time."""
        gates = nn.Dense(4 * self.size, kernel_init=orthogonal(), name="input")(x)
        kernel = self.param("kernel", orthogonal(), (self.size, 4 * self.size))

        def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
            gate, first = inputs
            c, h = trees.where(first, jax.tree.map(jnp.zeros_like, carry), carry)
            put, forget, new, out = jnp.split(gate + h @ kernel, 4, axis=-1)
            c = jax.nn.sigmoid(forget + 1.0) * c + jax.nn.sigmoid(put) * jnp.tanh(new)
            h = jax.nn.sigmoid(out) * jnp.tanh(c)
            return (c, h), h

        return jax.lax.scan(step, memory, (gates, start))


class S5(nn.Module):
    """Diagonal state-space layers (Smith et al. 2023, arXiv:2208.04933) with resets (Lu et al. 2023, arXiv:2303.03982).

    Each layer: x_t = Λ̄ x_{t-1} + B̄ u_t (x_{t-1} = 0 at an episode's start), y_t = 2 Re(C x_t) + D ⊙ u_t, then GELU, a
    gate, a residual connection and LayerNorm before. Λ̄ = exp(ΛΔ), B̄ = Λ⁻¹(Λ̄ - I)B (zero-order hold, eq. 6 of the
    paper). Λ starts at -1/2 + iπn, the diagonal form of S4D-Lin (Gu et al. 2022, arXiv:2206.11893, eq. 9), instead of
    an eigendecomposition of HiPPO, which would need LAPACK. Over time it is an associative scan: O(log T) depth.

    Attributes:
      size: width of input and output.
      num_states: complex states a layer.
      num_layers: layers.
    """

    size: int = 128
    num_states: int = 64
    num_layers: int = 2

    def initial_memory(self, batch_shape: tuple[int, ...] = ()) -> Complex[Array, "... L S"]:
        """Zeros [*batch_shape, num_layers, num_states], complex64."""
        return jnp.zeros((*batch_shape, self.num_layers, self.num_states), jnp.complex64)

    @nn.compact
    def __call__(self, memory: Array, x: Float[Array, "T B D"], start: Bool[Array, "T B"]) -> tuple[Array, Array]:
        """Runs the layers over time."""
        x = nn.Dense(self.size, kernel_init=orthogonal(math.sqrt(2)), name="input")(x)
        memories = []
        for layer in range(self.num_layers):
            u = nn.LayerNorm()(x)
            y, last = self._state_space(layer, memory[..., layer, :], u, start)
            y = jax.nn.gelu(y)
            x = x + y * jax.nn.sigmoid(nn.Dense(self.size, kernel_init=orthogonal())(y))
            memories.append(last)
        return jnp.stack(memories, axis=-2), x

    def _state_space(self, layer: int, memory: Array, u: Array, start: Array) -> tuple[Array, Array]:
        def lecun(key: jax.Array, shape: tuple[int, ...]) -> Array:
            return jax.random.normal(key, shape) / math.sqrt(shape[0])

        def log_step(key: jax.Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=math.log(1e-3), maxval=math.log(1e-1))

        name = f"layer{layer}"
        states, size = self.num_states, self.size
        decay = self.param(f"{name}_log_decay", lambda _, shape: jnp.full(shape, math.log(0.5)), (states,))
        frequency = self.param(
            f"{name}_frequency",
            lambda _, shape: math.pi * jnp.arange(shape[0], dtype=jnp.float32),
            (states,),
        )
        delta = jnp.exp(self.param(f"{name}_log_step", log_step, (states,)))
        b_real, b_imag = (self.param(f"{name}_b_{part}", lecun, (size, states)) for part in ("real", "imag"))
        c_real, c_imag = (self.param(f"{name}_c_{part}", lecun, (states, size)) for part in ("real", "imag"))
        skip = self.param(f"{name}_skip", nn.initializers.ones, (size,))

        eigenvalue = -jnp.exp(decay) + 1j * frequency
        transition = jnp.exp(eigenvalue * delta)
        drive = (u @ b_real + 1j * (u @ b_imag)) * ((transition - 1) / eigenvalue)[None, None]
        keep = jnp.where(start[..., None], 0.0 + 0.0j, jnp.broadcast_to(transition, drive.shape))
        drive = drive.at[0].add(keep[0] * memory)

        def combine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, state = jax.lax.associative_scan(combine, (keep, drive))
        y = 2 * (state.real @ c_real - state.imag @ c_imag) + jnp.broadcast_to(skip, u.shape) * u
        return y, state[-1]


CORES = {"gru": GRU, "lstm": LSTM, "s5": S5}
"""Cores by the name that a network's settings have."""


def initial_memory(name: str, size: int, batch_shape: Sequence[int] = ()) -> Memory:
    """Memory of a core at the start of an episode.

    Args:
      name: of `CORES`, or none.
      size: width of the core.
      batch_shape: leading axes.

    Returns:
      Leaves [*batch_shape, ...], each an array of its own; () for none.

    >>> initial_memory("none", 8), initial_memory("gru", 8, (3,)).shape
    ((), (3, 8))
    """
    return () if name == "none" else CORES[name](size, parent=None).initial_memory(tuple(batch_shape))
