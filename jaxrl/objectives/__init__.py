"""Policy objectives, written and learned, under one protocol (`jaxrl.types.Objective`)."""

from jaxrl.objectives.learned import LPO, drift_objective, drift_of, lpo, ppo_drift
from jaxrl.objectives.mixture import PMOE, pmoe
from jaxrl.objectives.surrogate import (
    DPO,
    MDPO,
    SPO,
    AlphaPenalty,
    Clip,
    KLPenalty,
    alpha_penalty,
    clip,
    dpo,
    kl_penalty,
    mdpo,
    spo,
)
from jaxrl.objectives.weighted import AWR, VMPO, Multipliers, awr, policy_gradient, vmpo

__all__ = [
    "AWR",
    "DPO",
    "LPO",
    "MDPO",
    "PMOE",
    "SPO",
    "VMPO",
    "AlphaPenalty",
    "Clip",
    "KLPenalty",
    "Multipliers",
    "alpha_penalty",
    "awr",
    "clip",
    "dpo",
    "drift_objective",
    "drift_of",
    "kl_penalty",
    "lpo",
    "mdpo",
    "pmoe",
    "policy_gradient",
    "ppo_drift",
    "spo",
    "vmpo",
]
