"""Policy objectives, written and learned, under one protocol (`jaxrl.types.Objective`)."""

from jaxrl.objectives.surrogate import Clip, KLPenalty, clip, kl_penalty

__all__ = ["Clip", "KLPenalty", "clip", "kl_penalty"]
