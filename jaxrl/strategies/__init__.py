"""Evolution strategies under one protocol (`jaxrl.types.Strategy`): ask for candidates, tell their fitness."""

from jaxrl.strategies.covariance import CMA, cma_es, sep_cma_es
from jaxrl.strategies.gradient import PGPE, OpenES, open_es, pgpe
from jaxrl.strategies.natural import SNES, XNES, snes, xnes
from jaxrl.strategies.shaping import Shaping, centered_rank, pairwise, raw, z_score

__all__ = [
    "CMA",
    "PGPE",
    "SNES",
    "XNES",
    "OpenES",
    "Shaping",
    "centered_rank",
    "cma_es",
    "open_es",
    "pairwise",
    "pgpe",
    "raw",
    "sep_cma_es",
    "snes",
    "xnes",
    "z_score",
]
