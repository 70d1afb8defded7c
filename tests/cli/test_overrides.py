"""`name=value` onto toy records: every type, every message."""

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrl import config_fields
from jaxrl.cli import overrides
from jaxrl.cli.documentation import attributes
from jaxrl.ops import trees


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
    either: int | str = 1
    torso: Torso = Torso()
    function: Any = len


@struct.dataclass
class Clip:
    clip: jax.Array


@struct.dataclass
class Hyperparams:
    objective: Clip
    weights: dict
    learning_rate: jax.Array
    num_updates: jax.Array
    enabled: jax.Array
    scales: jax.Array
    key: jax.Array


def hyperparams() -> Hyperparams:
    return Hyperparams(
        objective=Clip(jnp.float32(0.2)),
        weights={"a": jnp.float32(1), "b": jnp.float32(2)},
        learning_rate=jnp.float32(1e-3),
        num_updates=jnp.int32(3),
        enabled=jnp.bool_(True),
        scales=jnp.ones((2, 2), jnp.float32),
        key=jax.random.key(0),
    )


@pytest.mark.parametrize("name, text, value", [
    ("num_envs", "16", 16),
    ("num_envs", "5e3", 5000),
    ("num_envs", "1_000", 1000),
    ("rate", "1e-3", 1e-3),
    ("rate", "3", 3.0),
    ("rate", "inf", float("inf")),
    ("clip_value", "False", False),
    ("clip_value", "on", True),
    ("clip_value", "0", False),
    ("schedule", "constant", "constant"),
    ("name", "x=y", "x=y"),
    ("limit", "none", None),
    ("limit", "7", 7),
    ("either", "7", 7),
    ("either", "seven", "seven"),
    ("torso.widths", "128,64", (128, 64)),
    ("torso.widths", "(32,)", (32,)),
    ("torso.widths", "32", (32,)),
    ("torso.window", "2, 0.25", (2, 0.25)),
])  # fmt: skip
def test_config_values(name, text, value):
    changed = overrides.with_config_changes(Config(), {name: text})
    found = changed
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    assert dataclasses.replace(changed, **{name.split(".")[0]: getattr(Config(), name.split(".")[0])}) == Config()


@pytest.mark.parametrize("name, text, message", [
    ("num_envs", "4.5", "config.num_envs must be an integer; got '4.5'."),
    ("num_envs", "many", "config.num_envs must be an integer; got 'many'."),
    ("num_envs", "inf", "config.num_envs must be an integer; got 'inf'."),
    ("rate", "fast", "config.rate must be a number; got 'fast'."),
    ("rate", "nan", "config.rate must be a number; got 'nan'."),
    ("clip_value", "2", "config.clip_value must be true or false; got '2'."),
    ("schedule", "cosine", "config.schedule must be one of constant, linear; got 'cosine'."),
    ("limit", "few", "config.limit must be an integer or none; got 'few'."),
    ("torso.widths", "64,a", "config.torso.widths must be an integer; got 'a'."),
    ("torso.window", "64", "config.torso.window must be 2 values separated by commas; got '64'."),
    ("function", "max", "config.function is a Any, which a command line cannot give: set it from Python."),
    ("num_env", "4", "No field of the config is called 'config.num_env'. Did you mean config.num_envs?"),
    ("widths", "4", "No field of the config is called 'config.widths'. Did you mean config.torso.widths?"),
    ("learning_rate", "4", "No field of the config is called 'config.learning_rate'. Did you mean learning_rate"),
    ("zzz", "4", "No field of the config is called 'config.zzz'. There are config.num_envs, config.rate, "),
])  # fmt: skip
def test_config_errors(name, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        overrides.with_config_changes(Config(), {name: text}, ["learning_rate", "gamma"])


@pytest.mark.parametrize("name, text, value", [
    ("learning_rate", "1e-2", 1e-2),
    ("objective.clip", "0.1", 0.1),
    ("weights.b", "-3", -3.0),
    ("num_updates", "1e2", 100),
    ("enabled", "false", False),
    ("scales", "2", np.full((2, 2), 2.0)),
    ("scales", "1,2,3,4", np.array([[1.0, 2.0], [3.0, 4.0]])),
])  # fmt: skip
def test_leaves(name, text, value):
    before = trees.named_leaves(hyperparams())
    fields = overrides.with_hyperparameter_changes(hyperparams(), {name: text})
    assert list(fields) == [name.split(".")[0]]
    after = trees.named_leaves(hyperparams().replace(**fields))
    np.testing.assert_array_equal(after[name], np.asarray(value, before[name].dtype))
    for other, leaf in before.items():
        assert after[other].dtype == leaf.dtype
        assert after[other].shape == leaf.shape
        assert other == name or bool(jnp.all(after[other] == leaf))


def test_two_leaves_of_one_record():
    fields = overrides.with_hyperparameter_changes(hyperparams(), {"weights.a": "5", "weights.b": "6"})
    assert {name: float(leaf) for name, leaf in fields["weights"].items()} == {"a": 5.0, "b": 6.0}


@pytest.mark.parametrize("name, text, message", [
    ("learning_rate", "fast", "learning_rate must be a number; got 'fast'."),
    ("learning_rate", "1,2", "learning_rate must be one number; got '1,2'."),
    ("learning_rate", "", "learning_rate must be a number; got ''."),
    ("num_updates", "1.5", "num_updates must be an integer; got '1.5'."),
    ("num_updates", "3e9", "num_updates is of dtype int32, which cannot hold 3000000000."),
    ("enabled", "maybe", "enabled must be true or false; got 'maybe'."),
    ("scales", "1,2,3", "scales has shape (2, 2): give 1 or 4 values; got 3."),
    ("key", "3", "key is a random key, which a command line cannot give: it follows from --seed."),
    ("learning_rat", "3", "No hyperparameter is called 'learning_rat'. Did you mean learning_rate?"),
    ("clip", "3", "No hyperparameter is called 'clip'. Did you mean objective.clip?"),
    ("num_envs", "3", "No hyperparameter is called 'num_envs'. Did you mean config.num_envs?"),
    ("objective", "3", "No hyperparameter is called 'objective'"),
    ("zzz", "3", "No hyperparameter is called 'zzz'. There are objective.clip, weights.a, "),
])  # fmt: skip
def test_leaf_errors(name, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        overrides.with_hyperparameter_changes(hyperparams(), {name: text}, config_fields.fields(Config(), "config."))


def test_assignments():
    found = overrides.parse_assignments(["config.a=1", "b = 2", "c=x=y"])
    assert found == {"config.a": "1", "b": "2", "c": "x=y"}
    assert overrides.config_changes(found) == {"a": "1"}
    assert overrides.hyperparameter_changes(found) == {"b": "2", "c": "x=y"}


@pytest.mark.parametrize("texts, message", [
    (["a"], "'a' is not of the form name=value"),
    (["=1"], "'=1' is not of the form name=value"),
    (["a=1", "a=2"], "a is given twice: 1 and 2."),
])  # fmt: skip
def test_assignment_errors(texts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        overrides.parse_assignments(texts)


@pytest.mark.parametrize("text, value", [
    ("3", 3), ("0.5", 0.5), ("true", True), ("None", None), ("mjx", "mjx"), ("1,a", (1, "a")), ("False", False),
])  # fmt: skip
def test_options_of_environments(text, value):
    found = overrides.parse_option(text)
    assert found == value
    assert type(found) is type(value)


def test_a_config_comes_back_from_json():
    config = Config(num_envs=9, limit=3, torso=Torso(widths=(1, 2, 3)), function=None)
    as_json = {**dataclasses.asdict(config), "torso": {"widths": [1, 2, 3], "window": [1, 0.5]}}
    assert overrides.config_from_json(Config, as_json) == config
    with pytest.raises(ValueError, match="does not know: newer"):
        overrides.config_from_json(Config, {"newer": 1})


def test_attributes_of_a_docstring():
    class Documented:
        """Summary: not an attribute.

        Attributes:
          first: one line.
          second (int): begins here
            and: goes on there.

          third: last.

        Example:
          fourth: no.
        """

    assert attributes(Documented) == {
        "first": "one line.",
        "second": "begins here and: goes on there.",
        "third": "last.",
    }
