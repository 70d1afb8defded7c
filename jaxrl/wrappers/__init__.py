"""Wrappers: functions `Env -> Env`, so that they nest like `optax` transformations.

A wrapper keeps the name of the environment that it wraps and adds its own, `gymnax/CartPole-v1|frame_stack(4)`, so that
run folders tell them apart. Static arguments fix shapes; what may be swept is a leaf of the parameters: a wrapper with
leaves of its own has them in a record with the wrapped environment's parameters as `inner`; one without keeps the
parameters as they are. The same holds for the state. Wrapped environments are pure, may be vmapped over keys and any
leaf, and never reset by themselves, like those that they wrap. Equal arguments give the same record.

An observation `{"observation": ..., "action_mask": ...}` counts as its `observation`: `frame_stack`,
`flatten_observation`, `one_hot_observation` and `observe_time_left` change that and hand the mask on.

There is no wrapper that normalizes observations or rewards. Its statistics would be a part of one environment's state,
while they have to be shared by all environments that learn together, and be frozen in evaluation; so they live in the
algorithm's `State`.
"""

from jaxrl.wrappers.actions import StickyParams, StickyState, action_repeat, clip_action, rescale_action, sticky_actions
from jaxrl.wrappers.limits import CountedState, TimeLimitParams, observe_time_left, time_limit
from jaxrl.wrappers.observations import StackedState, flatten_observation, frame_stack, one_hot_observation
from jaxrl.wrappers.randomization import RandomizedState, UniformLeaves, randomize_params, uniform_leaves
from jaxrl.wrappers.residual import BasePolicy, ResidualParams, ResidualState, residual_action
from jaxrl.wrappers.rewards import ScaledParams, scale_reward
from jaxrl.wrappers.stock import StockParams, StockState, observe_stock

__all__ = [
    "BasePolicy",
    "CountedState",
    "RandomizedState",
    "ResidualParams",
    "ResidualState",
    "ScaledParams",
    "StackedState",
    "StickyParams",
    "StickyState",
    "StockParams",
    "StockState",
    "TimeLimitParams",
    "UniformLeaves",
    "action_repeat",
    "clip_action",
    "flatten_observation",
    "frame_stack",
    "observe_stock",
    "observe_time_left",
    "one_hot_observation",
    "randomize_params",
    "rescale_action",
    "residual_action",
    "scale_reward",
    "sticky_actions",
    "time_limit",
    "uniform_leaves",
]
