"""One CPU device a core, so that members of a population run side by side."""

import contextlib
import os

import jax


def use_all_cores(at_least: int = 1) -> None:
    """Asks for one CPU device a core; call it before the first computation. Without effect on GPU and TPU.

    Args:
      at_least: devices that a run was made with, which it needs again to have the same bits.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.config.values["jax_num_cpu_devices"] in (-1, None):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Within a program that has computed before, its devices stay as they are.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(cores, at_least))
