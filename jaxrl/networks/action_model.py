"""A network that predicts of a state, and of each discrete action in it by one step of a recurrent model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl import spaces
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.torsos import Encoder, activation_function
from jaxrl.types import Observation


class ActionModel(nn.Module):
    """Heads on a torso, and heads on a model of what each action leads to.

        x = torso(s),   c = W x,   h = tanh(c),   h_a = LSTM(one-hot a; h, c) for every a
        state heads: Dense(x);   action heads: Dense, activation, Dense of h_a

    Oh et al. (2025) use it for agents of Disco103, after MuZero's and Muesli's models.

    Attributes:
      space: of observations.
      num_actions: A.
      state_heads: (name, size) of the outputs [..., size].
      action_heads: (name, size) of the outputs [..., A, size].
      hidden: widths of the torso's dense layers; the last one is linear.
      model_size: units of the model.
      model_hidden: width of the action heads' layer.
      activation: between layers.
    """

    space: spaces.Space
    num_actions: int
    state_heads: tuple[tuple[str, int], ...]
    action_heads: tuple[tuple[str, int], ...]
    hidden: tuple[int, ...] = (512, 512)
    model_size: int = 128
    model_hidden: int = 128
    activation: str = "relu"

    @nn.compact
    def __call__(self, obs: Observation) -> dict[str, Float[Array, "..."]]:
        """Outputs by name."""
        activate, dense = activation_function(self.activation), lambda size, name: _dense(size, 2**0.5, name)
        x = Encoder(self.space, activation=self.activation, name="encoder")(obs)
        for i, width in enumerate(self.hidden):
            x = dense(width, f"torso_{i}")(x if i == 0 else activate(x))
        outputs = {name: _dense(size, 0.01, name)(x) for name, size in self.state_heads}

        cell = dense(self.model_size, "root")(x)
        kernel = self.param("recurrent", orthogonal(), (self.model_size, 4 * self.model_size))
        # The product with a one-hot action is a row: each action has gates of its own.
        gates = self.param("action", orthogonal(), (self.num_actions, 4 * self.model_size))
        bias = self.param("bias", nn.initializers.zeros, (4 * self.model_size,))
        shape = (*x.shape[:-1], self.num_actions, 4 * self.model_size)
        both = jnp.broadcast_to((jnp.tanh(cell) @ kernel)[..., None, :], shape)
        put, forget, new, out = jnp.split(both + jnp.broadcast_to(gates + bias[None], shape), 4, axis=-1)
        kept = jax.nn.sigmoid(forget + 1.0) * jnp.broadcast_to(cell[..., None, :], forget.shape)
        h = jax.nn.sigmoid(out) * jnp.tanh(kept + jax.nn.sigmoid(put) * jnp.tanh(new))
        for name, size in self.action_heads:
            outputs[name] = _dense(size, 1.0, name)(activate(dense(self.model_hidden, f"{name}_hidden")(h)))
        return outputs


def _dense(size: int, scale: float, name: str) -> nn.Dense:
    return nn.Dense(size, kernel_init=orthogonal(scale), name=name)
