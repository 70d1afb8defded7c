"""What a watched optimizer tells, against NumPy; that watching changes nothing; and that pictures come into being."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms import ppo
from jaxrl.analysis import optimizer_figures
from jaxrl.analysis.optimizer_figures import OptimizerTrace, watched
from jaxrl.networks import NetworkConfig
from jaxrl.networks.update_rules import DECAYS, UpdateInputs, open_rule
from jaxrl.ops.optimizers import adam

DRAWS = np.random.default_rng(0)
SHAPES = {"actor": (3, 4), "critic": (3, 2), "policy": (4, 2), "value": (2, 1)}
NORM = 0.5


def drawn(scale=1.0):
    return {"params": {name: {"kernel": np.float32(scale * DRAWS.normal(size=s))} for name, s in SHAPES.items()}}


PARAMS = drawn()
GRADIENTS = [drawn(0.2), drawn(2.0), drawn(0.2)]
HPARAMS = types.SimpleNamespace(max_grad_norm=NORM, optimizer=())
INPUTS = UpdateInputs(jnp.float32(0.3), jnp.float32(0.5), jax.tree.map(lambda x: jnp.ones(x.shape[-1]), PARAMS))


def ran(optimizer, hparams, key=None):
    """Steps one after the other at fixed parameters, and the last state."""

    @jax.jit
    def run(gradients):
        transform = optimizer(hparams, jnp.float32(0.01))
        state = transform.init(PARAMS) if key is None else optimizer.start(hparams, PARAMS, key)
        more, steps = {} if key is None else {"inputs": INPUTS}, []
        for gradient in gradients:
            step, state = transform.update(gradient, state, PARAMS, **more)
            steps.append(step)
        return steps, state

    return run(GRADIENTS)


def part(tree, names):
    return np.concatenate([np.ravel(tree["params"][name]["kernel"]).astype(np.float64) for name in names])


def cosines(steps, names):
    """Sums over updates with -g and -m, each gradient clipped to the part's norm."""
    moments, found = np.zeros((6, len(part(PARAMS, names)))), np.zeros(7)
    for step, gradient in zip(steps, GRADIENTS, strict=True):
        g = part(gradient, names)
        g *= min(1.0, NORM / np.linalg.norm(g))
        moments = np.array(DECAYS)[:, None] * moments + (1.0 - np.array(DECAYS)[:, None]) * g
        u = part(step, names)
        for i, direction in enumerate((-g, *-moments)):
            found[i] += u @ direction / np.linalg.norm(u) / np.linalg.norm(direction)
    return found


def rule_with_weights():
    rule = open_rule(hidden=3, memory=2)
    shapes = jax.eval_shape(rule.init, jax.random.key(0))
    weights = jax.tree.map(lambda x: jnp.asarray(DRAWS.normal(size=x.shape), jnp.float32), shapes)
    return rule, types.SimpleNamespace(max_grad_norm=NORM, optimizer=weights)


def test_cosines_of_adam_against_numpy_and_itself():
    plain, _ = ran(adam, HPARAMS)
    steps, state = ran(watched(adam), HPARAMS)
    for one, other in zip(plain, steps, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert float(state.num_updates) == 3.0
    np.testing.assert_allclose(state.cosines[0, :7], cosines(steps, ("actor", "policy")), rtol=1e-4)
    np.testing.assert_allclose(state.cosines[1, :7], cosines(steps, ("critic", "value")), rtol=1e-4)
    np.testing.assert_allclose(state.cosines[:, 7], 3.0, rtol=1e-5)


def test_a_watched_rule_makes_the_same_steps():
    rule, hparams = rule_with_weights()
    key = jax.random.key(3)
    plain, _ = ran(rule, hparams, key)
    steps, state = ran(watched(rule), hparams, key)
    for one, other in zip(plain, steps, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), one, other)
    np.testing.assert_allclose(state.cosines[0, :7], cosines(steps, ("actor", "policy")), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.cosines[1, :7], cosines(steps, ("critic", "value")), rtol=1e-3, atol=1e-4)
    # A rule that was drawn is not Adam.
    assert np.all(np.abs(state.cosines[:, 7]) < 2.9)


def trace(seed, num=6):
    draws = np.random.default_rng(seed)
    dormant = {"actor": draws.uniform(size=num), "critic": draws.uniform(size=num)}
    return OptimizerTrace(draws.uniform(-1, 1, (num, 2, 8)), dormant, np.array([np.nan, *draws.normal(size=num - 1)]))


def test_pictures_of_optimizers(tmp_path):
    # Steps of a rule that changes nothing have no direction.
    still = trace(2)._replace(cosines=np.full((6, 2, 8), np.nan), dormant={})
    optimizer_figures.plot_optimizers([("zero", still)], tmp_path / "zero.png")
    optimizer_figures.plot_optimizers([("open", trace(0)), ("Adam, rate 0.001", trace(1))], tmp_path / "open.png")
    assert (tmp_path / "open.png").stat().st_size > 20000
    with pytest.raises(ValueError, match="at least one"):
        optimizer_figures.plot_optimizers([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ValueError, match="must be at least 1; got 0 and 4"):
        optimizer_figures.optimizer_trace(lambda optimizer: None, adam, 0)


@pytest.mark.parametrize("num", [1, 2, 3, 30])
def test_steps_without_a_direction_say_so_on_whole_iterations(tmp_path, drawn, num):
    still, moving = trace(0, num)._replace(cosines=np.full((num, 2, 8), np.nan)), trace(1, num)
    optimizer_figures.plot_optimizers([("open", still), ("Adam", moving)], tmp_path / "open.png")
    panels = drawn[0].axes
    said = [" ".join(text.get_text() for text in panel.texts) for panel in panels]
    assert all("length 0" in words and "no direction" in words for words in said[:2])
    assert said[2:] == [""] * 4
    assert panels[0].get_xlim() == panels[2].get_xlim()
    for panel in panels[:5]:
        low, high = panel.get_xlim()
        ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
        assert ticks
        np.testing.assert_array_equal(ticks, np.round(ticks))
    lines = panels[2].get_lines()[: len(optimizer_figures.DIRECTIONS)]
    assert all((line.get_marker() == "o") == (num <= 12) for line in lines)


def test_legends_name_the_lines_of_their_panel(tmp_path, drawn):
    traces = [("open", trace(0)), ("Adam", trace(1))]
    optimizer_figures.plot_optimizers(traces, tmp_path / "open.png")
    names = lambda legend: [text.get_text() for text in legend.get_texts()]
    directions, optimizers = drawn[0].legends
    assert names(directions) == list(optimizer_figures.DIRECTIONS)
    assert names(optimizers) == ["open", "Adam"]
    dormancy, returns = drawn[0].axes[-2:]
    assert len(returns.get_lines()) == 2
    assert names(dormancy.get_legend()) == ["actor", "critic"]
    # Colors are optimizers, dashes torsos.
    assert {handle.get_color() for handle in dormancy.get_legend().get_lines()} == {"gray"}
    without = [(title, one._replace(dormant={})) for title, one in traces]
    optimizer_figures.plot_optimizers(without, tmp_path / "open.png")
    assert drawn[1].axes[-2].get_legend() is None


@pytest.mark.slow
def test_a_training_that_is_watched_is_the_training():
    rule, own = rule_with_weights()
    network = NetworkConfig(hidden=(4,), activation="relu")
    config = ppo.Config(
        num_envs=2, num_steps=8, num_epochs=2, num_minibatches=2, network=network, diagnostics=("dormant",)
    )
    make = lambda optimizer: ppo.ppo(jaxrl.make_env("probe/Credit"), optimizer=optimizer, config=config)
    for optimizer, weights in ((rule, {"optimizer": own.optimizer}), (adam, {})):
        hparams = make(optimizer).hyperparams(horizon=48.0, **weights)
        states = [
            jax.jit(jaxrl.train(make(each), 3))(jax.random.key(1), hparams)[0]
            for each in (optimizer, watched(optimizer))
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *[s.params for s in states])
        found = optimizer_figures.optimizer_trace(make, optimizer, 3, num_learners=2)(jax.random.key(0), hparams)
        assert found.cosines.shape == (3, 2, 8)
        assert np.abs(found.cosines).max() <= 1.0 + 1e-5
        assert set(found.dormant) == {"actor", "critic"}
        assert np.isfinite(found.outcome).any()
