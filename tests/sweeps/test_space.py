"""Which settings a space has, against products and formulas by hand, and what it refuses."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from jaxrl.sweeps import settings
from jaxrl.sweeps.conditions import Condition
from jaxrl.sweeps.settings import expand, num_cells
from jaxrl.sweeps.spaces import Grid, choice, grid, integers, linear, log, space, uniform
from jaxrl.sweeps.texts import describe, from_json, from_table, parse, to_json

INTEGERS = {"config.num_envs", "config.num_steps"}


def read(name, text):
    """As a command line would: by name an integer, a tuple, a text, true or false, or a number."""
    if name in INTEGERS:
        if float(text) != int(float(text)):
            raise ValueError(f"{name} must be an integer; got {text!r}.")
        return int(float(text))
    if name == "config.network.hidden":
        return tuple(int(part) for part in text.strip("()").split(","))
    if name == "config.schedule":
        return text
    if name == "config.clip_value":
        return {"true": True, "false": False}[text]
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number; got {text!r}.") from None


def listed(settings):
    """What each point of the space computes, in order; None where it is left out."""
    return [None if cell < 0 else settings.rows[cell] for cell in settings.cells.ravel()]


# Axes


@pytest.mark.parametrize("axis, values", [
    (grid(1, "a", None, (64, 64)), (1, "a", None, (64, 64))),
    (linear(0.0, 1.0, 11), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    (linear(-0.3, 0.3, 7), (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)),
    (linear(1, 10, 4), (1, 4, 7, 10)),
    (linear(0, 1, 3), (0.0, 0.5, 1.0)),
    (log(1e-4, 1e-2, 3), (1e-4, 1e-3, 1e-2)),
    (log(1e-7, 1.0, 8), (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)),
    (log(16, 128, 4), (16, 32, 64, 128)),
    (log(0.5, 2, 2), (0.5, 2.0)),
])  # fmt: skip
def test_grids_have_exactly_these_values_and_types(axis, values):
    assert repr(axis.values) == repr(values)


def test_grids_are_numpys():
    np.testing.assert_allclose(log(3e-5, 0.7, 9).values, np.geomspace(3e-5, 0.7, 9), rtol=1e-14)
    np.testing.assert_allclose(linear(-3.3, 0.7, 9).values, np.linspace(-3.3, 0.7, 9), atol=1e-15)


@pytest.mark.parametrize("law, reference", [
    (uniform(0.1, 0.3), scipy.stats.uniform(0.1, 0.2)),
    (log(1e-4, 1e-2), scipy.stats.loguniform(1e-4, 1e-2)),
])  # fmt: skip
def test_quantiles_are_scipys(law, reference):
    shares = np.linspace(0, 1, 101)[:-1]
    np.testing.assert_allclose([law.quantile(u) for u in shares], reference.ppf(shares), rtol=1e-13)


@pytest.mark.parametrize("law, values", [(integers(-1, 2), [-1, 0, 1, 2]), (choice("a", "b", (3,)), ["a", "b", (3,)])])
def test_discrete_laws_give_all_values_an_equal_share(law, values):
    shares = (np.arange(1200) + 0.5) / 1200
    drawn = [law.quantile(float(u)) for u in shares]
    assert drawn == [value for value in values for _ in range(1200 // len(values))]
    assert law.quantile(0.0) == values[0]
    assert law.quantile(math.nextafter(1.0, 0.0)) == values[-1]


def test_no_draw_leaves_its_range():
    for law in (uniform(0.1, 0.3), log(1e-4, 1e-2), uniform(-1.7e308, 1.7e308), integers(0, 3 * 10**30)):
        assert law.quantile(0.0) == law.low
        assert law.low <= law.quantile(math.nextafter(1.0, 0.0)) <= law.high
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="u must be at least 0"):
            uniform(0, 1).quantile(share)


@pytest.mark.parametrize("make, message", [
    (lambda: log(0, 1, 3), r"log\(0, 1\) must lie above zero"),
    (lambda: log(-1, 1), r"log\(-1, 1\) must lie above zero"),
    (lambda: log(1e-2, 1e-4, 8), r"must go from low to high"),
    (lambda: uniform(1, 1), r"uniform\(1, 1\) must go from low to high"),
    (lambda: integers(3, 3), r"must go from low to high"),
    (lambda: integers(0.5, 3), r"must be integers"),
    (lambda: uniform("a", 3), r"must be numbers"),
    (lambda: uniform(False, True), r"must be numbers"),
    (lambda: uniform(0, math.inf), r"must be finite"),
    (lambda: uniform(0, 10**400), r"must be finite"),
    (lambda: linear(math.nan, 1, 3), r"must not be NaN"),
    (lambda: linear(0, 1, 0), r"num of linear\(0, 1, num\) must be an integer from 2 .* got 0"),
    (lambda: log(1, 2, 1), r"must be an integer from 2"),
    (lambda: linear(0, 1, 2.0), r"must be an integer from 2"),
    (lambda: linear(0, 1, 10**9), r"to 1,000,000; got 1000000000"),
    (lambda: grid(), r"A grid needs at least one value"),
    (lambda: choice(), r"A choice needs at least one value"),
    (lambda: grid(1, 2, 1.0), r"values of a grid must differ; 1 comes twice"),
    (lambda: grid(64, 64), r"A value that is a tuple needs parentheses"),
    (lambda: choice("a", "a"), r"values of a choice must differ; a comes twice"),
    (lambda: grid(math.nan), r"must not be NaN"),
    (lambda: grid({1: 2}), r"must be a number, a text, true, false, none or a tuple of these"),
])  # fmt: skip
def test_bad_axes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Conditions

VALUES = {"a": 3, "b": 0.5, "config.name": "linear", "flag": True, "nothing": None, "hidden": (64, 64)}


@pytest.mark.parametrize("text, truth", [
    ("a == 3", True), ("a != 3", False), ("a < 3", False), ("a <= 3", True), ("a > 2", True), ("a >= 4", False),
    ("1 < a <= 3", True), ("1 < a < 3", False), ("not a == 3", False), ("a == 3 and b == 1", False),
    ("a == 4 or b == 0.5", True), ("(a == 4 or b == 0.5) and flag", True), ("a + b == 3.5", True),
    ("a - b * 2 == 2", True), ("a / b == 6", True), ("a // 2 == 1", True), ("a % 2 == 1", True), ("a ** 2 == 9", True),
    ("-a < -2", True), ("config.name == 'linear'", True), ('config.name in ("linear", "cosine")', True),
    ("a not in (1, 2)", True), ("a in [1, 3]", True), ("flag == true", True), ("flag != True", False), ("FALSE", False),
    ("nothing == none", True), ("nothing != None", False), ("hidden == (64, 64)", True), ("  flag ", True),
    ("config.name == 'a = b'", False), ("nothing != none and nothing > 3", False),
])  # fmt: skip
def test_conditions(text, truth):
    assert Condition(text).holds(VALUES) is truth


def test_a_condition_knows_its_names():
    assert Condition("config.num_envs * a <= 8 and a != None or true").names == ("config.num_envs", "a")


@pytest.mark.parametrize("text, message", [
    ("a = 3", "single =: write =="), ("a ==", "cannot be read"), ("", "cannot be read"), ("f(a) == 3", "not among"),
    ("a[0] == 3", "not among"), ("(lambda: 1) == 3", "not among"), ("a is 3", "not among"), ("a | 1 == 3", "not among"),
    ("__import__('os').system == 3", "not among"), ("(1).real == 1", "not among"), ("{1: 2} == a", "not among"),
    ("1j == a", "not among"), ("a if b else 3", "not among"), ("[x for x in a] == 1", "not among"),
    ("a == 1; b == 2", "cannot be read"), ("-" * 999 + "1", "cannot be read"), ("1 + " * 500 + "1", "1000 characters"),
])  # fmt: skip
def test_bad_conditions(text, message):
    with pytest.raises(ValueError, match=message):
        Condition(text)


@pytest.mark.parametrize("text, message", [
    ("aa == 3", "aa in 'aa == 3' has no value. Did you mean a"),
    ("a", "3 is neither true nor false"), ("not a", "3 is neither true nor false"), ("a and flag", "neither true nor"),
    ("config.name < 3", "cannot be decided for config.name = linear"),
    ("config.name + 1 == 3", "linear is not a number"),
    ("flag + 1 == 2", "true is not a number"), ("nothing > 3", "cannot be decided for nothing = none"),
    ("a / (b - b) == 1", "division by zero"), ("a ** 9 ** 9 ** 9 > 1", "cannot be decided"),
    ("a in 3", "cannot be decided"),
    ("config.name * 1000000000 == 'a'", "not a number"),
])  # fmt: skip
def test_conditions_that_the_values_do_not_fit(text, message):
    with pytest.raises(ValueError, match=message):
        Condition(text).holds(VALUES)


# Expanding


def test_grids_are_multiplied():
    settings = expand(space({"a": [1, 2], "config.b": ("x", "y", "z"), "c": np.array([0.5])}))
    assert settings.dims == settings.names == ("a", "config.b", "c")
    assert settings.cells.shape == (2, 3, 1)
    assert settings.cells.dtype == np.int32
    expected = [{"a": a, "config.b": b, "c": 0.5} for a, b in itertools.product([1, 2], "xyz")]
    assert listed(settings) == expected == list(settings.rows)
    assert settings.coords == {"a": ("a", [1, 2]), "config.b": ("config.b", ["x", "y", "z"]), "c": ("c", [0.5])}
    assert type(settings.rows[0]["c"]) is float


def test_an_empty_space_is_one_setting():
    settings = expand(space({}))
    assert settings.rows == ({},)
    assert settings.cells.shape == settings.dims == settings.names == ()
    assert settings.cells == 0
    assert settings.coords == {}
    assert num_cells(space({})) == 1
    assert expand(space({}, where="gamma < 1"), {"gamma": 0.9}).rows == ({},)


def test_zipped_names_share_a_dimension():
    settings = expand(space({("rate", "gamma"): [(1e-3, 0.9), (1e-4, 0.9)], "a": [1, 2]}))
    assert settings.dims == ("rate+gamma", "a")
    assert settings.names == ("rate", "gamma", "a")
    expected = [{"rate": r, "gamma": 0.9, "a": a} for r, a in itertools.product([1e-3, 1e-4], [1, 2])]
    assert listed(settings) == expected
    assert settings.coords["gamma"] == ("rate+gamma", [0.9, 0.9])


def test_every_grid_point_gets_the_same_samples():
    made = space({"rate": log(1e-4, 1e-2), "a": [1, 2], "n": integers(0, 5)}, num_samples=5)
    settings = expand(made)
    assert settings.dims == ("a", "sample")
    assert settings.names == ("a", "rate", "n")
    assert num_cells(made) == settings.cells.size == 10
    first, second = listed(settings)[:5], listed(settings)[5:]
    assert [{**row, "a": 2} for row in first] == second
    assert settings.coords["rate"] == ("sample", [row["rate"] for row in first])
    assert settings.coords["n"] == ("sample", [row["n"] for row in first])


def test_equal_draws_are_computed_once():
    settings = expand(space({"n": integers(0, 1)}, num_samples=10))
    assert sorted(row["n"] for row in settings.rows) == [0, 1]
    assert [settings.rows[cell]["n"] for cell in settings.cells] == settings.coords["n"][1]


@pytest.mark.parametrize("method", ["sobol", "random"])
@pytest.mark.parametrize("seed", [0, 7])
def test_first_samples_stay_when_there_are_more(method, seed):
    def drawn(num, **more):
        over = {"rate": log(1e-4, 1e-2), **more, "clip": uniform(0.1, 0.3)}
        coords = expand(space(over, num_samples=num, method=method, seed=seed)).coords
        return list(zip(coords["rate"][1], coords["clip"][1], strict=True))

    whole = drawn(100)
    assert len(set(whole)) == 100
    for num in (1, 2, 3, 64, 65):
        assert drawn(num) == whole[:num]
    if method == "random":
        assert drawn(100, other=uniform(0, 1)) == whole


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_seeds_differ(method):
    over = {"rate": uniform(0, 1)}
    draws = [tuple(expand(space(over, num_samples=8, method=method, seed=s)).coords["rate"][1]) for s in range(5)]
    assert len(set(draws)) == 5


def test_sobol_fills_the_plane_more_evenly_than_random():
    def discrepancy(method):
        coords = expand(space({"x": uniform(0, 1), "y": uniform(0, 1)}, num_samples=128, method=method)).coords
        return scipy.stats.qmc.discrepancy(np.stack([coords["x"][1], coords["y"][1]], axis=1))

    assert discrepancy("sobol") < 0.2 * discrepancy("random")


def test_random_draws_follow_the_law_and_are_independent():
    over = {"x": uniform(0, 1), "y": log(1, 10)}
    coords = expand(space(over, num_samples=2000, method="random")).coords
    assert scipy.stats.kstest(coords["x"][1], "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(coords["y"][1], scipy.stats.loguniform(1, 10).cdf).pvalue > 1e-3
    assert abs(scipy.stats.spearmanr(coords["x"][1], coords["y"][1]).statistic) < 0.1


def test_settings_are_the_same_on_every_machine():
    """Figures of one machine, to every bit: what is drawn must not follow NumPy's, SciPy's or libm's version."""
    over = {"rate": log(1e-4, 1e-2), "clip": uniform(0.1, 0.3)}
    sobol, random = (expand(space(over, num_samples=2, method=method)).coords for method in ("sobol", "random"))
    assert sobol["rate"][1] == [0.00022266551844499596, 0.0022266551844499593]
    assert sobol["clip"][1] == [0.18895842922289283, 0.28895842922289283]
    assert random["rate"][1] == [0.00022266551844499596, 0.002465452561178332]
    assert random["clip"][1] == [0.18895842922289283, 0.24480501347094977]


def test_the_order_of_hashes_has_no_influence():
    code = (
        "from jaxrl.sweeps.spaces import *; from jaxrl.sweeps.settings import expand; "
        "print(expand(space({'a': [1, 2], 'x': uniform(0, 1), 'y': choice('a', 'b')},"
        " num_samples=3, conditions={'y': 'a == 1', 'x': 'c == 1'}), {'c': 1, 'y': 'a'}).rows)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True, timeout=100,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""


def test_where_leaves_settings_out():
    over = {"config.num_envs": [16, 64, 256], "config.num_steps": [32, 128]}
    settings = expand(space(over, where="config.num_envs * config.num_steps <= limit"), {"limit": 8192})
    expected = [
        {"config.num_envs": e, "config.num_steps": s} if e * s <= 8192 else None
        for e, s in itertools.product([16, 64, 256], [32, 128])
    ]
    assert None in expected
    assert listed(settings) == expected
    assert list(settings.rows) == [row for row in expected if row]
    assert settings.cells.tolist() == [[0, 1], [2, 3], [4, -1]]


def test_a_conditional_name_is_swept_where_its_rule_holds_and_equal_settings_merge():
    made = space({"flag": [True, False], "clip": [0.1, 0.3]}, conditions={"clip": "flag == true"})
    settings = expand(made, {"clip": 0.2})
    assert settings.rows == ({"flag": True, "clip": 0.1}, {"flag": True, "clip": 0.3}, {"flag": False})
    assert settings.cells.tolist() == [[0, 1], [2, 2]]
    assert settings.coords["clip"] == ("clip", [0.1, 0.3])


def test_conditions_see_the_defaults_of_what_is_not_swept_there():
    # c follows from b, and b from a, whatever the order in which they are written.
    for conditions in ({"c": "b == 2", "b": "a == 1"}, {"b": "a == 1", "c": "b == 2"}):
        made = space({"c": [5, 6], "a": [0, 1], "b": [2, 3]}, conditions=conditions, where="c != 6 or b == 2")
        rows = expand(made, {"b": 2, "c": 9}).rows
        a0 = [{"a": 0, "c": 5}, {"a": 0, "c": 6}]
        a1 = [{"a": 1, "b": 2, "c": 5}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "c": 6}]
        assert sorted(map(str, map(sorted, map(dict.items, rows)))) == sorted(
            map(str, map(sorted, map(dict.items, a0 + a1)))
        )


def test_types_keep_settings_apart():
    values = {"i": 1, "f": 1.0, "b": True, "t": "1", "z": 0.0, "m": -0.0}
    settings = expand(from_table(["a", *"ifbtzmib"], lambda name, text: values[text]))
    assert settings.cells.tolist() == [0, 1, 2, 3, 4, 5, 0, 2]


@pytest.mark.parametrize("arguments, defaults, message", [
    ({"where": "gama < 1"}, {"gamma": 0.9, "rate": 1}, "gama in 'gama < 1' is neither swept nor .* Did you mean gamma"),
    ({"where": "clip < 1"}, {"objective.clip": 3}, "Did you mean objective.clip"),
    ({"where": "gamma < 1"}, None, "gamma in 'gamma < 1' is neither swept nor a known default .* There are a, b"),
    ({"where": "a == linear"}, None, "a text needs quotes"),
    ({"conditions": {"a": "zzz < 1"}}, {}, "zzz in 'zzz < 1' is neither"),
    ({"conditions": {"a": "b == 3"}, "where": "a == 1"}, {}, "a in 'a == 1' is not swept everywhere"),
    ({"where": "a > 100"}, {}, "No setting of the space fulfills where = 'a > 100'"),
    ({"where": "a"}, {}, "1 is neither true nor false"),
])  # fmt: skip
def test_expanding_what_cannot_be(arguments, defaults, message):
    made = space({"a": [1, 2], "b": [3, 4]}, **arguments)
    with pytest.raises(ValueError, match=message):
        expand(made, defaults)


def test_unknown_names_are_known_before_anything_is_expanded(monkeypatch):
    made = space({"a": linear(0, 1, 1000), "b": [3, 4]}, where="false and c == 1")
    monkeypatch.setattr(settings.itertools, "product", lambda *parts: pytest.fail("was expanded"))
    with pytest.raises(ValueError, match="c in"):
        expand(made, {})


def test_too_many_settings_are_refused_at_once():
    made = space({"a": linear(0, 1, 1000), "b": linear(0, 1, 500), "x": uniform(0, 1)}, num_samples=20)
    assert num_cells(made) == 10_000_000
    with pytest.raises(ValueError) as error:
        expand(made)
    assert "10,000,000 settings (a 1,000 x b 500 x sample 20), more than 1,000,000" in str(error.value)
    assert "lower the number of values of a" in str(error.value)
    with pytest.raises(ValueError, match="lower num_samples"):
        expand(space({"x": uniform(0, 1)}, num_samples=10**9))
    monstrous = space({name: linear(0, 1, 1000) for name in "abcdefghij"})
    assert num_cells(monstrous) == 10**30


@pytest.mark.parametrize("over, arguments, message", [
    ({"a": []}, {}, "a: A grid needs at least one value"),
    ({"a": [1, 1]}, {}, "a: The values of a grid must differ"),
    ({"a": 0.1}, {}, "a: The values must be a list"),
    ({"a": "text"}, {}, "a: The values must be a list"),
    ({"a": {1: 2}}, {}, "a: The values must be a list"),
    ({"a b": [1]}, {}, "'a b' is no name"),
    ({"a.": [1]}, {}, "'a.' is no name"),
    ({3: [1]}, {}, "3 is no name; names are dotted"), ({(): [()]}, {}, r"\(\) is no name"),
    ({("a", 3): [(1, 2)]}, {}, "3 is no name"),
    ({"seed": [1]}, {}, "'seed' cannot be swept"),
    ({"sample": [1]}, {}, "'sample' cannot be swept"),
    ({("a", "b"): [(1, 2), (1,)]}, {}, r"a,b: Each row must have 2 values, one a name; got \(1\)"),
    ({("a", "b"): [1, 2]}, {}, "a,b: Each row must have 2 values"),
    ({("a", "b"): uniform(0, 1)}, {"num_samples": 3}, "a,b are zipped and take listed rows"),
    ({("a", "b"): [(1, 2)], "a": [1]}, {}, "a is given twice"),
    ({("a", "a"): [(1, 2)]}, {}, "a is given twice"),
    ({"a": uniform(0, 1)}, {}, "a has a distribution: say how many samples"),
    ({"a": [1]}, {"num_samples": 3}, "num_samples = 3, but every axis is listed"),
    ({}, {"num_samples": 3}, "num_samples = 3, but every axis is listed"),
    ({"a": uniform(0, 1)}, {"num_samples": -1}, "num_samples must be an integer of at least 0; got -1"),
    ({"a": uniform(0, 1)}, {"num_samples": 2.0}, "num_samples must be an integer"),
    ({"a": [1]}, {"seed": -1}, "seed must be an integer of at least 0"),
    ({"a": [1]}, {"method": "halton"}, "method must be 'sobol' or 'random'; got 'halton'"),
    ({"a": [1]}, {"where": "a = 1"}, "single ="),
    ({"alpha": [1]}, {"conditions": {"alpa": "true"}}, "alpa has a condition but is not swept. Did you mean alpha"),
    ({"a": [1]}, {"conditions": {"a": "a =="}}, "cannot be read"),
    ({"a": [1]}, {"conditions": {"a": "a == 1"}}, "conditions of a depend on themselves"),
    ({"a": [1], "b": [1]}, {"conditions": {"a": "b == 1", "b": "a == 1"}}, "conditions of a, b depend on themselves"),
])  # fmt: skip
def test_bad_spaces(over, arguments, message):
    with pytest.raises(ValueError, match=message):
        space(over, **arguments)


# Tables


def test_a_table_is_one_dimension_of_settings(tmp_path):
    text = 'rate, config.num_envs,config.network.hidden\r\n1e-3,16,\r\n\r\n1e-4,,"(64, 64)"\r\n1e-3,16,\r\n'
    path = tmp_path / "settings.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for made in (from_table(path, read), from_table(str(path), read), from_table(text.splitlines(), read)):
        settings = expand(made, {"config.num_envs": 64})
        assert settings.dims == ("setting",)
        assert settings.names == ("rate", "config.num_envs", "config.network.hidden")
        assert settings.rows == (
            {"rate": 1e-3, "config.num_envs": 16}, {"rate": 1e-4, "config.network.hidden": (64, 64)},
        )  # fmt: skip
        assert settings.cells.tolist() == [0, 1, 0]
        assert settings.coords["config.num_envs"] == ("setting", [16, 64, 16])
        assert settings.coords["config.network.hidden"] == ("setting", [None, (64, 64), None])
        assert from_json(json.loads(json.dumps(to_json(made)))) == made
        assert describe(made) == ["setting: 3 rows of rate, config.num_envs, config.network.hidden"]


def test_a_cell_that_says_the_default_equals_an_empty_one():
    made = from_table(["rate,gamma", "0.1,0.9", "0.1,"], read)
    assert expand(made, {"gamma": 0.9}).cells.tolist() == [0, 0]
    assert expand(made, {"gamma": 0.8}).cells.tolist() == [0, 1]
    assert expand(made).cells.tolist() == [0, 1]


@pytest.mark.parametrize("lines, message", [
    ([], "the table needs a header"), (["rate"], "needs a header of names and at least one row"),
    (["rate,gamma", "1,2", "1,2,3"], "Line 3 of the table: there are 3 cells under 2 names"),
    (["rate", "1", "", "fast"], "Line 4 of the table: rate must be a number; got 'fast'"),
    (["rate,rate", "1,2"], "Line 1 of the table: rate is given twice"),
    (["rate,", "1,2"], "Line 1 of the table: '' is no name"), (["seed", "1"], "Line 1 of the table: 'seed' cannot be"),
    (["rate", '"1"2'], "Line 2 of the table"), (["rate", "nan"], "Line 2 of the table: A value must not be NaN"),
])  # fmt: skip
def test_bad_tables(lines, message):
    with pytest.raises(ValueError, match=message):
        from_table(lines, read)


def test_a_missing_table(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.csv cannot be read: No such file"):
        from_table(tmp_path / "absent.csv", read)


# The command line


@pytest.mark.parametrize("text, name, axis", [
    ("rate=log(1e-4,1e-2,3)", "rate", Grid((1e-4, 1e-3, 1e-2), "log")),
    ("gae_lambda=0.9,0.95", "gae_lambda", Grid((0.9, 0.95))),
    ("gae_lambda = 0.9 , 0.95 ", "gae_lambda", Grid((0.9, 0.95))),
    ("config.num_envs=16,64", "config.num_envs", Grid((16, 64))),
    ("config.num_envs=log(16,128,4)", "config.num_envs", Grid((16, 32, 64, 128), "log")),
    ("config.num_envs=linear(1.0,3.0,3)", "config.num_envs", Grid((1, 2, 3), "linear")),
    ("rate=linear(1,3,3)", "rate", Grid((1.0, 2.0, 3.0), "linear")),
    ("objective.clip=uniform(0.1,0.3)", "objective.clip", uniform(0.1, 0.3)),
    ("rate=log( 1e-4 , 1e-2 )", "rate", log(1e-4, 1e-2)),
    ("gamma=integers(1,5)", "gamma", integers(1, 5)),
    ("config.num_envs=integers(1,5)", "config.num_envs", integers(1, 5)),
    ("config.schedule=choice(linear,constant)", "config.schedule", choice("linear", "constant")),
    ("rate=grid(1,2)", "rate", Grid((1.0, 2.0))),
    ("config.network.hidden=(64,64),(256,256)", "config.network.hidden", Grid(((64, 64), (256, 256)))),
    ("config.network.hidden=(64,64)", "config.network.hidden", Grid(((64, 64),))),
    ("config.network.hidden=choice((64,64),(8,8))", "config.network.hidden", choice((64, 64), (8, 8))),
    ("rate,gamma=(1e-3,0.99),(1e-4,0.999)", ("rate", "gamma"), Grid(((1e-3, 0.99), (1e-4, 0.999)))),
    ("rate,config.network.hidden=(1,(64,64))", ("rate", "config.network.hidden"), Grid(((1.0, (64, 64)),))),
    ("rate=inf", "rate", Grid((math.inf,))),
])  # fmt: skip
def test_command_line_axes(text, name, axis):
    over, conditions = parse([text], read)
    assert list(over) == [name]
    assert repr(over[name]) == repr(axis)
    assert conditions == {}


def test_command_line_conditions_and_whole_space():
    texts = [
        "config.clip_value=true,false", "value_clip=0.1,0.3 if config.clip_value == true",
        "rate,gamma=(1,2),(3,4) if config.clip_value == false",
    ]  # fmt: skip
    over, conditions = parse(texts, read)
    off, on = "config.clip_value == false", "config.clip_value == true"
    assert conditions == {"value_clip": on, "rate": off, "gamma": off}
    rows = expand(space(over, conditions=conditions)).rows
    flag = "config.clip_value"
    assert rows == (
        {flag: True, "value_clip": 0.1}, {flag: True, "value_clip": 0.3},
        {flag: False, "rate": 1.0, "gamma": 2.0}, {flag: False, "rate": 3.0, "gamma": 4.0},
    )  # fmt: skip
    assert parse([], read) == ({}, {})


@pytest.mark.parametrize("texts, message", [
    (["rate=lgo(1,2)"], r"rate=lgo\(1,2\): No function is called 'lgo'; did you mean log\?"),
    (["rate=zzzzzz(1,2)"], "No function is called 'zzzzzz'; there are grid, choice, linear, log, uniform, integers"),
    (["rate"], "'rate' is not of the form name=values"), (["=3"], "not of the form"), (["a b=3"], "not of the form"),
    (["a,=3"], "not of the form"), (["a<=3"], "not of the form"),
    (["rate="], "rate=: '' has an empty value"), (["rate=1,,2"], "has an empty value"), (["rate=1,"], "empty value"),
    (["rate=log(1,2"], "unbalanced parentheses"), (["rate=1)"], "unbalanced parentheses"),
    (["rate=)1("], "unbalanced parentheses"),
    (["rate=1", "rate=2"], "rate is given twice: rate=1 and rate=2"),
    (["rate=1", "gamma,rate=(1,2)"], "rate is given twice"),
    (["rate=fast"], "rate=fast: rate must be a number; got 'fast'"),
    (["rate=1,1"], "rate=1,1: The values of a grid must differ"),
    (["rate=log(1,2,3,4)"], "log takes low, high and perhaps num; got 4 values"),
    (["rate=uniform(1)"], "uniform takes low, high; got 1 values"),
    (["rate=linear(1,2)"], "linear takes low, high, num; got 2 values"),
    (["rate=log(1,x)"], "'x' must be a number"), (["rate=log(0,1)"], r"log\(0, 1\) must lie above zero"),
    (["rate=log(1,2,2.5)"], "must be an integer from 2"),
    (["config.num_envs=uniform(1,4)"], r"config.num_envs must be an integer; got '1.95.*use integers\(low, high\)"),
    (["config.num_envs=linear(1,4,3)"], "config.num_envs must be an integer; got '2.5'"),
    (["config.schedule=uniform(1,4)"], "uniform draws numbers, which config.schedule does not take"),
    (["rate,gamma=1,2"], "Zipped names take rows of 2 values in parentheses; got 1"),
    (["rate,gamma=(1,2),(1,2,3)"], r"rows of 2 values in parentheses; got \(1,2,3\)"),
    (["rate,gamma=log(1,2)"], r"Zipped names take rows of 2 values in parentheses; got log\(1,2\)"),
])  # fmt: skip
def test_bad_command_lines(texts, message):
    with pytest.raises(ValueError, match=message):
        parse(texts, read)


# JSON and descriptions


def test_json_gives_a_space_back():
    made = space(
        {
            "a": [1, 1.5, math.inf, -math.inf, "inf", None, False, (64, (32.0, math.inf)), ()], "rate": log(1e-4, 1, 3),
            ("b", "c"): [(1, "x"), (2.0, None)], "x": log(1, 2), "y": choice((1, 2), "z"), "n": integers(1, 2),
        },
        num_samples=4, method="random", seed=3, where="n > 0", conditions={"b": "n == 1", "x": "a != 1"},
    )  # fmt: skip
    text = json.dumps(to_json(made), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == made
    assert repr(again) == repr(made)
    assert json.loads(text) == to_json(made)
    assert from_json(json.loads(json.dumps(to_json(space({}))))) == space({})
    assert hash(again) == hash(made)


def test_descriptions():
    made = space(
        {
            "learning_rate": log(1e-4, 1e-2, 8), "gae_lambda": [0.9, 0.95], "n": list(range(20)),
            "config.clip_value": [True, None], ("a", "b"): [(1, (64, 64)), (2, (8,))], "clip": uniform(0.1, 0.3),
            "rate": log(1e-4, 1e-2), "k": integers(1, 5), "schedule": choice("linear", "constant"),
        },
        num_samples=32, where="n > 0", conditions={"n": "k == 1", "a": "k == 2", "b": "k == 2", "clip": "k > 1"},
    )  # fmt: skip
    assert describe(made) == [
        "learning_rate: 8 values from 0.0001 to 0.01 (log)",
        "gae_lambda: 0.9, 0.95",
        "n: 20 values: 0, 1, 2, …, 19 if k == 1",
        "config.clip_value: true, none",
        "a+b: (1, (64, 64)), (2, (8)) if k == 2",
        "clip: uniform from 0.1 to 0.3, 32 samples (sobol) if k > 1",
        "rate: log-uniform from 0.0001 to 0.01, 32 samples (sobol)",
        "k: integers from 1 to 5, 32 samples (sobol)",
        "schedule: one of linear, constant, 32 samples (sobol)",
        "only where n > 0",
    ]
    assert describe(space({})) == []


def test_a_space_needs_no_jax():
    code = "import sys; import jaxrl.sweeps.settings, jaxrl.sweeps.texts; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
