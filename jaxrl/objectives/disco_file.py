"""The file in which the authors of Disco103 published its weights (google-deepmind/disco_rl, `disco_103.npz`)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxrl.objectives.disco import Rule, rule


def weights(path: str | Path, update_rule: Rule | None = None) -> PyTree:
    """Reads the authors' file `disco_103.npz` as weights of `rule()`.

    Args:
      path: of the file; its arrays are named `lstm/...`.
      update_rule: of other sizes, for a file of their code's with these; None: `rule()`.

    Returns:
      The weights.

    Raises:
      ValueError: the file lacks an array, has one too many, or one of another shape than the rule has.
    """
    with np.load(path) as file:
        found = {name: np.asarray(file[name], np.float32) for name in file.files}
    wanted = {f"{part}/{leaf}" for part in _PARTS for leaf in "wb"}
    if set(found) != wanted:
        raise ValueError(
            f"disco: {path} is not a file of Disco103; missing are {sorted(wanted - set(found))[:4]}, and unknown "
            f"{sorted(set(found) - wanted)[:4]}."
        )
    tree: dict[str, Any] = {}
    for source, place in _PARTS.items():
        kernel, bias = found[f"{source}/w"], found[f"{source}/b"]
        if place[-1] in ("core", "life"):
            # Gates in their file: input, new, forget, output; here: input, forget, new, output.
            order = np.arange(kernel.shape[-1]).reshape(4, -1)[[0, 2, 1, 3]].ravel()
            size = kernel.shape[-1] // 4
            kernel, bias = kernel[:, order], bias[order]
            leaves: dict[str, Any] = {
                "input": {"kernel": kernel[:-size], "bias": bias},
                "kernel": kernel[-size:],
            }
        else:
            leaves = {"kernel": kernel.reshape(kernel.shape[-2:]), "bias": bias}
        node = tree
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = leaves
    tree = {"params": jax.tree.map(jnp.asarray, tree)}
    shapes = jax.eval_shape((update_rule or rule()).init, jax.random.key(0))
    if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, shapes):
        raise ValueError(f"disco: the arrays of {path} do not have the shapes of the rule: give the rule of its sizes.")
    return tree


_LIFE = "lstm/~/meta_lstm/~unroll"
_PARTS = {
    "lstm/linear": ("gate",),
    "lstm/linear_1": ("summary",),
    "lstm/linear_2": ("y",),
    "lstm/linear_3": ("z",),
    "lstm/linear_4": ("policy",),
    "lstm/lstm/linear": ("core",),
    "lstm/sequential_1/conv1_d": ("mix", "layer_0"),
    f"{_LIFE}/lstm/linear": ("life",),
    f"{_LIFE}/mlp_2/~/linear_0": ("memory_embedding",),
    **{
        f"{root}/{source}": (place, *rest)
        for root, place in (("lstm", "read"), (_LIFE, "memory_read"))
        for source, rest in {
            "mlp/~/linear_0": ("y_net", "first"),
            "mlp/~/linear_1": ("y_net", "second"),
            "mlp_1/~/linear_0": ("z_net", "first"),
            "mlp_1/~/linear_1": ("z_net", "second"),
            "sequential/conv1_d": ("mix", "layer_0"),
            "sequential/conv1_d_1": ("mix", "layer_1"),
        }.items()
    },
}
