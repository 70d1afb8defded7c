"""Distributions of actions as pytrees.

Leading axes are a batch; what one draw looks like is said with each class. A distribution is data: it may be an output
of `jit`, stacked by `scan`, mapped by `vmap` and differentiated through. All have

    sample(key)              one draw for each entry of the batch
    noise(key)               the random numbers that one draw needs
    sample_from(noise)       the draw that they make; sample(key) is sample_from(noise(key))
    sample_and_log_prob(key) one draw with its log-probability, cheaper and more exact than two calls
    log_prob(x)              [*batch]
    entropy()                [*batch], in nats
    kl(other)                KL(self || other), [*batch], of the same class
    mode()                   the draw to take where no noise is wanted

All are exact but for the entropy of `TanhGaussian` (within 2e-5) and of `GaussianMixture` (a lower bound) and the KL
divergence of `GaussianMixture` (an upper bound).
"""

from jaxrl.ops.distributions.autoregressive import (
    MAX_JOINT_ACTIONS,
    AutoregressiveCategorical,
    check_num_joint_actions,
)
from jaxrl.ops.distributions.bang_bang import BangBang
from jaxrl.ops.distributions.categorical import Categorical, MultiCategorical, masked_categorical
from jaxrl.ops.distributions.divergences import alpha_divergence
from jaxrl.ops.distributions.gaussian import Gaussian, TanhGaussian
from jaxrl.ops.distributions.mixture import GaussianMixture

Distribution = (
    Categorical | MultiCategorical | AutoregressiveCategorical | Gaussian | TanhGaussian | GaussianMixture | BangBang
)

__all__ = [
    "MAX_JOINT_ACTIONS",
    "AutoregressiveCategorical",
    "BangBang",
    "Categorical",
    "Distribution",
    "Gaussian",
    "GaussianMixture",
    "MultiCategorical",
    "TanhGaussian",
    "alpha_divergence",
    "check_num_joint_actions",
    "masked_categorical",
]
