"""Networks as flax.linen modules: torsos, recurrent cores, heads, and the actor-critic made of them."""

from jaxrl.networks.actor_critic import ActorCritic, NetworkConfig, Output, actor_critic
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.recurrent import GRU, LSTM, S5

__all__ = ["GRU", "LSTM", "S5", "ActorCritic", "NetworkConfig", "Output", "actor_critic", "orthogonal"]
