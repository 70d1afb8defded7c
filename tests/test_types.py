"""Memoized factories, and what records show of themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl.types import Algorithm, memoize

made = []


@memoize
def factory(a, b=2, **options):
    made.append((a, b, options))
    return object()


def test_equal_arguments_are_one_record_however_they_are_passed():
    first = factory(1)
    assert factory(1, 2) is first
    assert factory(a=1, b=2) is first
    assert factory(1, b=2) is first
    assert factory(1, 3) is not first
    assert factory(1, c=0) is not first
    assert factory(1, c=0) is factory(1, 2, c=0)


@pytest.mark.parametrize(
    "arguments, name",
    [({"a": [1]}, "a"), ({"a": 1, "c": {}}, "options"), ({"a": {"k": 1}}, "a"), ({"a": 1, "b": {}}, "b")],
)
def test_what_cannot_be_hashed_is_named_with_the_remedy(arguments, name):
    with pytest.raises(TypeError, match=rf"factory: argument {name} = .* must be hashable.*Pass a tuple"):
        factory(**arguments)


def test_the_factorys_own_errors_come_through():
    with pytest.raises(TypeError, match="missing a required argument"):
        factory()


def test_an_algorithm_shows_config_and_hyperparameters_as_a_table():
    config = dataclasses.make_dataclass("Config", [("num_envs", int, 3), ("kind", str, "<a>")])()
    hparams = {"rate": np.float32(0.5), "weights": np.zeros((2, 3), np.float32), "key": jax.random.key(0)}
    mine = Algorithm(
        lambda: None, lambda: None, lambda: None, lambda: hparams, env_steps=1536, name="mine", config=config
    )
    table = mine._repr_html_()
    for cell in ("mine", "1,536", "config.num_envs", "&lt;a&gt;", "rate</td><td>0.5", "weights</td><td>float32[2,3]"):
        assert cell in table
    assert "<a>" not in table
