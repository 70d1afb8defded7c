"""The critic of value-based agents in slots: how returns are represented, what is bootstrapped from, what is learned.

    head        K outputs of the network for each action ⟷ a value; its loss     scalar, categorical, quantile, …
    functional  what of a distribution is maximized, if not its mean             `maximizing`: shortfall, cvar, …
    backup      the policy that the successor is valued under, and bonuses       maximum, double, soft, munchausen, …
    target      the network that values the successor                            `synchronize`, `synchronize_chain`

Every constant of a head or a backup is a leaf of its parameters, so it may be swept. A head knows nothing of actions'
choice and a backup nothing of distributions: any two go together.

A *chain* of targets (i-QN) is the same record with one axis more: parameters [C, ...], `jax.vmap` over it of the
network and of the head's loss, with link c's successor valued by what follows link c - 1.
"""

from jaxrl.ops.bins import Support
from jaxrl.values.actions import epsilon_greedy, legal_only
from jaxrl.values.backups import (
    Annealed,
    Expected,
    Munchausen,
    Soft,
    annealed,
    double,
    expected,
    maximum,
    munchausen,
    soft,
)
from jaxrl.values.discovered import Regularized, dqn_clipped, dqn_reg, graph
from jaxrl.values.distributional import categorical, implicit_quantile, quantile, quantile_huber
from jaxrl.values.functionals import (
    Cvar,
    Entropic,
    Functional,
    Homeostatic,
    Maximizing,
    best_stock,
    cvar,
    entropic,
    homeostatic,
    maximizing,
    shortfall,
    utility,
)
from jaxrl.values.projections import ProjectionEnsemble, projection_ensemble
from jaxrl.values.records import ILLEGAL, Backup, BackupInputs, Target, ValueHead
from jaxrl.values.scalars import (
    Huber,
    Mapped,
    generalized_gaussian,
    huber,
    logistic,
    mapped,
    scalar,
)
from jaxrl.values.targets import synchronize, synchronize_chain

__all__ = [
    "ILLEGAL",
    "Annealed",
    "Backup",
    "BackupInputs",
    "Cvar",
    "Entropic",
    "Expected",
    "Functional",
    "Homeostatic",
    "Huber",
    "Mapped",
    "Maximizing",
    "Munchausen",
    "ProjectionEnsemble",
    "Regularized",
    "Soft",
    "Support",
    "Target",
    "ValueHead",
    "annealed",
    "best_stock",
    "categorical",
    "cvar",
    "double",
    "dqn_clipped",
    "dqn_reg",
    "entropic",
    "epsilon_greedy",
    "expected",
    "generalized_gaussian",
    "graph",
    "homeostatic",
    "huber",
    "implicit_quantile",
    "legal_only",
    "logistic",
    "mapped",
    "maximizing",
    "maximum",
    "munchausen",
    "projection_ensemble",
    "quantile",
    "quantile_huber",
    "scalar",
    "shortfall",
    "soft",
    "synchronize",
    "synchronize_chain",
    "utility",
]
