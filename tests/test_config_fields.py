"""Fields of a config by dotted path: the one check of types that the command line and sweeps share."""

import dataclasses
import re
from typing import Any, Literal

import pytest

from jaxrl import config_fields, names


@dataclasses.dataclass(frozen=True)
class Torso:
    widths: tuple[int, ...] = (64, 64)
    window: tuple[int, float] = (1, 0.5)


@dataclasses.dataclass(frozen=True)
class Config:
    num_envs: int = 4
    rate: float = 0.5
    clip_value: bool = True
    schedule: Literal["constant", "linear"] = "linear"
    name: str = "a"
    limit: int | None = None
    torso: Torso = Torso()
    function: Any = len


def test_fields_have_their_paths_values_and_kinds():
    found = config_fields.fields(Config(num_envs=7), names.CONFIG)
    assert list(found) == [
        f"config.{name}"
        for name in (
            *("num_envs", "rate", "clip_value", "schedule", "name", "limit"),
            *("torso.widths", "torso.window", "function"),
        )
    ]
    assert found["config.num_envs"] == (int, 7)
    assert found["config.torso.widths"] == (tuple[int, ...], (64, 64))


@pytest.mark.parametrize("name, value", [
    ("num_envs", 8), ("rate", 0.1), ("rate", 2), ("clip_value", False), ("schedule", "constant"), ("name", "b"),
    ("limit", None), ("limit", 3), ("torso.widths", (8,)), ("torso.widths", ()), ("torso.window", (2, 1)),
    ("function", max), ("function", "max"),
])  # fmt: skip
def test_a_value_of_the_kind_takes_its_place(name, value):
    changed = config_fields.replaced(Config(), name, value)
    assert config_fields.fields(changed)[name].value == value
    assert config_fields.replaced(changed, name, config_fields.fields(Config())[name].value) == Config()


def test_lists_become_tuples():
    assert config_fields.replaced(Config(), "torso.widths", [8, 8]) == Config(torso=Torso(widths=(8, 8)))


@pytest.mark.parametrize("name, value, message", [
    ("num_envs", 4.0, "config.num_envs must be an integer; got 4.0."),
    ("num_envs", True, "config.num_envs must be an integer; got True."),
    ("num_envs", "4", "config.num_envs must be an integer; got '4'."),
    ("rate", "fast", "config.rate must be a number; got 'fast'."),
    ("rate", False, "config.rate must be a number; got False."),
    ("clip_value", 1, "config.clip_value must be true or false; got 1."),
    ("schedule", "cosine", "config.schedule must be one of constant, linear; got 'cosine'."),
    ("name", 3, "config.name must be text; got 3."),
    ("limit", 0.5, "config.limit must be an integer or none; got 0.5."),
    ("torso.widths", 64, "config.torso.widths must be integers separated by commas; got 64."),
    ("torso.widths", (64, 0.5), "config.torso.widths must be integers separated by commas; got (64, 0.5)."),
    ("torso.window", (1,), "config.torso.window must be 2 values separated by commas; got (1,)."),
])  # fmt: skip
def test_a_value_of_another_kind_is_refused(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config_fields.replaced(Config(), name, value)


@pytest.mark.parametrize("name, known, others, message", [
    ("num_env", ["gamma"], ["config.num_envs"], "No hyperparameter is called 'num_env'. Did you mean config.num_envs?"),
    ("config.gamma", ["config.c"], ["gamma"], "No field of the config is called 'config.gamma'. Did you mean gamma?"),
    ("clip", ["a.clip", "b.clip", "c"], [], "No hyperparameter is called 'clip'. Did you mean a.clip or b.clip?"),
    ("zzz", ["a", "b"], ["config.c"], "No hyperparameter is called 'zzz'. There are a, b."),
    ("zzz", [f"n{k}" for k in range(32)], [], "n29 and 2 more."),
    ("zzz", [], [], "No hyperparameter is called 'zzz'. There are none."),
])  # fmt: skip
def test_the_message_for_a_name_that_nothing_has(name, known, others, message):
    assert names.unknown(name, known, others).endswith(message)
