"""Policy objectives, written and learned, under one protocol (`jaxrl.types.Objective`)."""

from jaxrl.objectives.mixture import PMOE, pmoe
from jaxrl.objectives.surrogate import DPO, MDPO, SPO, Clip, KLPenalty, clip, dpo, kl_penalty, mdpo, spo
from jaxrl.objectives.weighted import AWR, VMPO, Multipliers, awr, policy_gradient, vmpo

__all__ = [
    "AWR",
    "DPO",
    "MDPO",
    "PMOE",
    "SPO",
    "VMPO",
    "Clip",
    "KLPenalty",
    "Multipliers",
    "awr",
    "clip",
    "dpo",
    "kl_penalty",
    "mdpo",
    "pmoe",
    "policy_gradient",
    "spo",
    "vmpo",
]
