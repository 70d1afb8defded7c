"""The checker of laws passes what keeps them, and names what breaks them."""

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from jaxrl.ops import trees
from jaxrl.testing import LawError, check_algorithm
from jaxrl.types import Algorithm


@struct.dataclass
class Hyperparams:
    rate: jax.Array
    noise: jax.Array


@struct.dataclass
class State:
    key: jax.Array
    params: dict
    count: jax.Array


def descent(broken=""):
    """Noisy gradient descent, with one defect."""

    def hyperparams(**changes):
        return trees.with_changes(trees.as_arrays(Hyperparams(rate=0.1, noise=0.1)), changes, {})

    def init(key, hparams):
        key, key_params = jax.random.split(jax.random.key(3) if broken == "one key" else key)
        weight = jax.random.normal(key_params, (3,))
        return State(
            jax.random.key_data(key) if broken == "raw key" else key,
            {"w": weight, "b": jnp.ones(2)},
            jnp.int32(0),
        )

    def step(state, hparams):
        key = jax.random.wrap_key_data(state.key) if broken == "raw key" else state.key
        key, key_noise = jax.random.split(key)
        noise = jax.random.normal(key if broken == "reused key" else key_noise, (3,))
        rate = 0.1 if broken == "dead leaf" else hparams.rate
        params = {
            "w": state.params["w"] * (1 - rate) + hparams.noise * noise,
            "b": state.params["b"] * (1.0 if broken == "frozen" else 1 - rate),
        }
        if broken == "conditional":
            params = jax.lax.cond(state.count > 1, lambda p: p, lambda p: jax.tree.map(jnp.negative, p), params)
        if broken == "batch":  # what a member does depends on the others, as a collective would make it
            params["w"] = params["w"] + _mixed(params["w"])
        count = state.count + (jnp.float32(1.5) if broken == "dtype" else 1)
        key = jax.random.key_data(key) if broken == "raw key" else key
        return State(key, params, count), {"loss/value": jnp.sum(params["w"])}

    return Algorithm(init, step, lambda state, memory, obs, key: (obs, memory), hyperparams, name="descent")


@jax.custom_batching.custom_vmap
def _mixed(x):
    return jnp.zeros_like(x)


@_mixed.def_vmap
def _mixed_batch(size, batched, x):
    return jnp.ones_like(x), True


def test_what_keeps_the_laws_passes():
    check_algorithm(descent())


@pytest.mark.parametrize(
    "broken, message",
    [
        ("dtype", "law 1: count is int32[] after init and float32[] after step"),
        ("raw key", "law 2: the state holds no typed key"),
        ("reused key", "law 2: a key is used twice"),
        ("one key", "law 2: two keys give the same parameters"),
        ("batch", "law 3: 0.params.w differs between vmap and the loop"),
        ("conditional", "law 5: step has 1 lax.cond"),
        ("frozen", "law 6: parameter b does not move in 3 steps"),
        ("dead leaf", "law 6: hyperparameter rate changes nothing"),
    ],
)
def test_what_breaks_a_law_is_named(broken, message):
    with pytest.raises(LawError) as error:
        check_algorithm(descent(broken))
    assert any(line.startswith(message) for line in error.value.violations), str(error.value)


def test_inert_names_are_let_through():
    check_algorithm(descent("dead leaf"), inert=("rate",))
    check_algorithm(descent("frozen"), inert=("b",))
