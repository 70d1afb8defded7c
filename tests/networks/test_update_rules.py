"""OPEN against its formulas in float64, what it must not depend on, and the authors' weights in the authors' code."""

import dataclasses
import functools
import importlib.util
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import spaces
from jaxrl.networks import actor_critic, update_rules
from jaxrl.networks.actor_critic import init_params, only_value_reads
from jaxrl.networks.torsos import activation_function
from jaxrl.networks.update_rules import UpdateInputs, open_rule, open_weights, unit_activity
from jaxrl.ops import trees

NET = actor_critic(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), hidden=(5, 4), activation="relu")
RULE = open_rule(hidden=6, memory=4)
NUM_UPDATES = 3
DRAWS = np.random.default_rng(0)


def drawn(shapes, scale=0.5, seed=0):
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * draws.normal(size=leaf.shape), jnp.float32), shapes)


WEIGHTS = drawn(jax.eval_shape(RULE.init, jax.random.key(0)), seed=1)
SHAPES = jax.eval_shape(functools.partial(init_params, NET), jax.random.key(0), jnp.zeros(3))
PARAMS = drawn(SHAPES, seed=2)
GRADIENTS = [drawn(SHAPES, 0.1, seed=3 + i) for i in range(NUM_UPDATES)]
ACTIVITY = jax.tree.map(lambda leaf: jnp.asarray(DRAWS.uniform(0.0, 2.0, leaf.shape[-1]), jnp.float32), SHAPES)
INPUTS = UpdateInputs(jnp.float32(0.25), jnp.float32(0.5), ACTIVITY)


def ran(weights, key, scale=1.0, inputs=INPUTS, norm=0.5):
    """Updates one after the other at fixed parameters, and the last state."""
    return _ran(weights, key, scale, inputs, norm)


@jax.jit
def _ran(weights, key, scale, inputs, norm):
    transform = RULE.transform(weights, norm, key)

    def update(state, gradient):
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        return transform.update(gradient, state, PARAMS, inputs=inputs)[::-1]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *GRADIENTS)
    state, found = jax.lax.scan(update, transform.init(PARAMS), stacked)
    return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(NUM_UPDATES)], state


def oracle(weights, noises):
    """The formulas of `open_rule` in float64, one parameter after the other."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), weights["params"])
    leaves = jax.tree_util.tree_flatten_with_path(PARAMS)[0]
    names = [trees.path_name(path).removeprefix("params.") for path, _ in leaves]
    depth = {
        "actor.Dense_0": 0.0,
        "actor.Dense_1": 1 / 3,
        "policy": 2 / 3,
        "log_std": 1.0,
        "critic.Dense_0": 0.0,
        "critic.Dense_1": 0.5,
        "value": 1.0,
    }
    value = [name.startswith(("critic", "value")) for name in names]
    moments = [np.zeros((*leaf.shape, 6)) for _, leaf in leaves]
    memory = [np.zeros((*leaf.shape, 4)) for _, leaf in leaves]
    decays, found = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]), []
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    dense = lambda x, part: x @ part["kernel"] + part.get("bias", 0.0)

    def norm(x, part):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * part["scale"] + part["bias"]

    for gradient, noise in zip(GRADIENTS, noises, strict=True):
        g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        for kind in (True, False):
            length = np.sqrt(sum((x**2).sum() for x, v in zip(g, value, strict=True) if v == kind))
            g = [x * min(1.0, 0.5 / length) if v == kind else x for x, v in zip(g, value, strict=True)]
        steps = []
        for i, (_, leaf) in enumerate(leaves):
            p = np.asarray(leaf, np.float64)
            moments[i] = decays * moments[i] + (1 - decays) * g[i][..., None]
            log = lambda x: np.log(np.abs(x) + 1e-13)
            x = np.stack(
                [p, *np.moveaxis(np.sign(moments[i]), -1, 0), *np.moveaxis(log(moments[i]), -1, 0)]
                + [np.sign(g[i]), log(g[i])],
                -1,
            )
            x = x / np.sqrt(1e-5 + (x**2).mean(tuple(range(p.ndim)), keepdims=True))
            activity = np.asarray(jax.tree.leaves(ACTIVITY)[i], np.float64)
            dormancy = np.broadcast_to(activity / activity.mean(), p.shape)
            layer = next(share for name, share in depth.items() if names[i].startswith(name))
            rest = [np.full(p.shape, 0.25), np.full(p.shape, layer), np.full(p.shape, 0.5), dormancy]
            x, h, cell = np.concatenate([x, np.stack(rest, -1)], -1), memory[i], w["gru"]
            r = sigmoid(dense(x, cell["ir"]) + dense(h, cell["hr"]))
            z = sigmoid(dense(x, cell["iz"]) + dense(h, cell["hz"]))
            new = np.tanh(dense(x, cell["in"]) + r * dense(h, cell["hn"]))
            memory[i] = (1 - z) * new + z * h
            y = memory[i]
            for j in range(2):
                y = np.maximum(norm(dense(y, w[f"dense_{j}"]), w[f"norm_{j}"]), 0.0)
            out = dense(y, w["output"])
            step = 1e-3 * out[..., 0] * np.exp(1e-3 * out[..., 1])
            steps.append(step + (0.0 if value[i] else 1e-3 * out[..., 2] * noise[i]))
        mean = np.concatenate([x.ravel() for x in steps]).mean()
        found.append([-(x - mean) for x in steps])
    return found


def noises_from(key):
    """As the rule draws them."""
    size, found = sum(leaf.size for leaf in jax.tree.leaves(PARAMS)), []
    for _ in range(NUM_UPDATES):
        key, own = jax.random.split(key)
        flat = np.asarray(jax.random.normal(own, (size,)), np.float64)
        ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(PARAMS)])[:-1]
        parts = zip(np.split(flat, ends), jax.tree.leaves(PARAMS), strict=True)
        found.append([part.reshape(leaf.shape) for part, leaf in parts])
    return found


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def test_updates_are_the_formulas():
    got, _ = ran(WEIGHTS, jax.random.key(5))
    want = oracle(WEIGHTS, noises_from(jax.random.key(5)))
    scale = np.abs(flat(want)).max()
    np.testing.assert_allclose(flat(got), np.concatenate([flat(x) for x in want]), atol=1e-4 * scale)
    assert scale > 1e-5, "updates of nothing test nothing"


def test_weights_at_first_change_nothing_and_are_as_many_as_published():
    sizes = {(16, 8): 1211, (32, 16): 3571}
    for widths, size in sizes.items():
        assert sum(leaf.size for leaf in jax.tree.leaves(open_rule(*widths).init(jax.random.key(0)))) == size
    got, state = ran(RULE.init(jax.random.key(0)), jax.random.key(5))
    assert not flat(got).any()
    assert flat(state.moments).any()


def test_updates_sum_to_zero_and_noise_is_the_policys():
    one, other = (ran(WEIGHTS, jax.random.key(seed))[0] for seed in (0, 1))
    assert abs(flat(one[0]).astype(np.float64).mean()) < 1e-6 * np.abs(flat(one[0])).max()
    of_value = np.concatenate(
        [np.full(leaf.size, only_value_reads(path)) for path, leaf in jax.tree_util.tree_flatten_with_path(PARAMS)[0]]
    )
    change = flat(one[0]) - flat(other[0])
    # The mean over all parameters, which is taken off, has noise in it.
    assert np.ptp(change[of_value]) < 1e-3 * np.ptp(change[~of_value])
    assert np.ptp(change[~of_value]) > 1e-5


def test_what_an_update_does_not_depend_on():
    """The length of a gradient that is clipped anyway, and the unit in which activity is measured."""
    key, more = jax.random.key(0), dataclasses.replace(INPUTS, activity=jax.tree.map(lambda a: 3.0 * a, ACTIVITY))
    base = flat(ran(WEIGHTS, key, norm=1e-2)[0])
    tolerance = 1e-3 * np.abs(base).max()
    np.testing.assert_allclose(flat(ran(WEIGHTS, key, norm=1e-2, scale=7.0)[0]), base, atol=tolerance)
    np.testing.assert_allclose(flat(ran(WEIGHTS, key, norm=1e-2, inputs=more)[0]), base, atol=tolerance)
    # Each of the four that are not normalized is seen.
    for change in ({"training": 0.9}, {"epoch": 0.9}, {"activity": jax.tree.map(jnp.square, ACTIVITY)}):
        changed = {name: value if name == "activity" else jnp.float32(value) for name, value in change.items()}
        other = flat(ran(WEIGHTS, key, norm=1e-2, inputs=dataclasses.replace(INPUTS, **changed))[0])
        assert np.abs(other - base).max() > 10 * tolerance, change


def test_members_of_a_population_have_their_own_weights_and_noise():
    weights = jax.tree.map(lambda x: jnp.stack([x, -0.5 * x]), WEIGHTS)
    keys = jax.random.split(jax.random.key(0), 2)
    together, _ = jax.jit(jax.vmap(lambda w, k: ran(w, k)))(weights, keys)
    for i in range(2):
        alone, _ = ran(jax.tree.map(lambda x, i=i: x[i], weights), keys[i])
        member = flat(jax.tree.map(lambda x, i=i: x[i], together))
        np.testing.assert_allclose(member, flat(alone), atol=1e-4 * np.abs(flat(alone)).max())


@pytest.mark.parametrize("norm", [{}, {"layer_norm": True}, {"weight_norm": True}])
def test_activity_is_that_of_the_unit_that_a_parameter_feeds(norm):
    net = actor_critic(NET.observation_space, NET.action_space, hidden=(5, 4), activation="relu", **norm)
    obs = jnp.asarray(DRAWS.normal(size=(7, 3)), jnp.float32)
    params = drawn(jax.eval_shape(functools.partial(init_params, net), jax.random.key(0), obs[0]), seed=4)
    (output, _), kept = net.apply(params, obs, capture_intermediates=True, mutable=["intermediates"])
    activity = unit_activity(net, params, obs)["params"]
    last = np.abs(np.asarray(kept["intermediates"]["actor"]["__call__"][0])).mean(0)
    for leaves in [leaf for name, leaf in activity["actor"].items() if name.endswith("_1")]:
        for leaf in jax.tree.leaves(leaves):
            np.testing.assert_allclose(leaf, last, rtol=1e-5)
    np.testing.assert_allclose(activity["policy"]["kernel"], np.abs(output.policy.mean).mean(0), rtol=1e-5)
    np.testing.assert_allclose(activity["value"]["bias"], np.abs(output.value).mean()[None], rtol=1e-5)
    assert activity["log_std"].tolist() == [1.0]
    if not norm:
        first = (
            obs @ params["params"]["critic"]["Dense_0"]["kernel"] + params["params"]["critic"]["Dense_0"]["bias"][None]
        )
        np.testing.assert_allclose(
            activity["critic"]["Dense_0"]["bias"], np.abs(activation_function("relu")(first)).mean(0), rtol=1e-5
        )


def test_layers_of_encoders_cores_and_free_parameters():
    image = spaces.Box(0.0, 1.0, (6, 6, 1))
    net = actor_critic(image, spaces.Discrete(3), hidden=(4,), memory="gru", memory_size=4)
    params = jax.eval_shape(functools.partial(init_params, net), jax.random.key(0), jnp.zeros(image.shape))
    params["objective"] = {"variables": {"temperature": jax.ShapeDtypeStruct((), jnp.float32)}}
    names = [name.removeprefix("params.") for name in trees.named_leaves(params)]
    shares = dict(zip(names, update_rules.layer_shares(params), strict=True))
    parts = ("encoder.CNN_0.Conv_0", "encoder.CNN_0.Dense_0", "torso.Dense_0", "core", "policy", "objective")
    want = {name: i / 5 for name in names for i, part in enumerate(parts) if name.startswith(part)}
    assert shares == pytest.approx({**want, "value.bias": 0.0, "value.kernel": 0.0})


def test_training_share():
    share = lambda steps, horizon: float(update_rules.training_share(jnp.float32(steps), jnp.float32(horizon), 10))
    assert [share(0, 50), share(20, 50), share(40, 50), share(90, 50)] == [0.0, 0.5, 1.0, 1.0]
    assert share(20, np.inf) == 0.0
    assert share(0, 10) == 0.0


def test_messages(tmp_path):
    with pytest.raises(ValueError, match="widths must be at least 1; got hidden = 0"):
        open_rule(hidden=0)
    with pytest.raises(ValueError, match="which is missing or"):
        open_rule()(types.SimpleNamespace(max_grad_norm=0.5), jnp.float32(0.1))
    transform = RULE.transform(WEIGHTS, 0.5, None)
    with pytest.raises(ValueError, match="needs a key"):
        transform.init(PARAMS)
    with pytest.raises(ValueError, match="needs params and inputs"):
        transform.update(PARAMS, RULE.transform(WEIGHTS, 0.5, jax.random.key(0)).init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"has 1211 weights; got an array of shape \(3571,\)"):
        open_weights(np.zeros(3571))
    np.save(tmp_path / "weights.npy", np.arange(3571.0))
    assert open_weights(tmp_path / "weights.npy", 32, 16)["params"]["output"]["kernel"].shape == (32, 3)


FOLDER = os.environ.get("JAXRL_OPEN_FOLDER", "")
LAYERS = {
    "actor": ("actor.Dense_0", "actor.Dense_1", "policy"),
    "critic": ("critic.Dense_0", "critic.Dense_1", "value"),
}


def authors_network(folder, monkeypatch):
    """The authors' network.py, with stand-ins for what it imports beside flax and optax."""

    class Moments:
        def __init__(self, decays):
            self.decays = decays

        def init(self, params):
            return types.SimpleNamespace(m=jax.tree.map(lambda p: jnp.zeros((*p.shape, 6)), params))

        def update(self, state, gradient):
            decay = lambda m, g: self.decays * m + (1 - self.decays) * g[..., None]
            return types.SimpleNamespace(m=jax.tree.map(decay, state.m, gradient))

    package = "learned_optimization.learned_optimization"
    stand_ins = {
        "gin": {"configurable": lambda cls: cls},
        "base": dict.fromkeys(("LearnedOptimizer", "Optimizer", "MetaParams", "Params"), object),
        "learned_optimization": {},
        package: {"tree_utils": types.SimpleNamespace(match_type=lambda new, _: new)},
        f"{package}.learned_optimizers": {
            "common": types.SimpleNamespace(vec_rolling_mom=Moments, MomAccumulator=object)
        },
    }
    for name, parts in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("authors_network", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_theirs(tree):
    """Two networks, layers by number, the free log-deviation in the actor."""
    found = {part: {} for part in LAYERS}
    for part, names in LAYERS.items():
        for i, name in enumerate(names):
            outer, _, inner = name.partition(".")
            node = tree["params"][outer]
            found[part][f"Dense_{i}"] = node[inner] if inner else node
    found["actor"]["log_std"] = tree["params"]["log_std"]
    return {part: {"params": layers} for part, layers in found.items()}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="JAXRL_OPEN_FOLDER names no folder with network.py and pretrained/*.npy")
@pytest.mark.parametrize("name", ["breakout", "ant", "multi"])
def test_the_authors_code_with_the_authors_weights_moves_parameters_alike(name, monkeypatch):
    """The noise is a constant in both."""
    folder, widths = Path(FOLDER), (32, 16) if name == "multi" else (16, 8)
    file = folder / "pretrained" / f"{name}_OPEN.npy"
    authors = authors_network(folder, monkeypatch).GRU_Opt(hidden_size=widths[0], gru_features=widths[1])
    _, unravel = jax.flatten_util.ravel_pytree(authors.init(jax.random.PRNGKey(0)))
    theirs = authors.opt_fn(unravel(jnp.asarray(np.load(file))))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), **_: jnp.full(shape, 0.7))
    activity = jax.tree.map(lambda x: x, ACTIVITY)
    activity["params"]["log_std"] = jnp.ones(1)
    clip, shares = (
        optax.clip_by_global_norm(0.5),
        jax.tree.unflatten(jax.tree.structure(PARAMS), update_rules.layer_shares(PARAMS)),
    )
    ours = open_rule(*widths).transform(open_weights(file, *widths), jnp.float32(0.5), jax.random.key(0))
    params, their_params = PARAMS, as_theirs(PARAMS)
    state = ours.init(params)
    states = [theirs.init(tree, key=jax.random.PRNGKey(0)) for tree in their_params.values()]
    mask = {
        part: jax.tree.map(lambda _, part=part: float(part == "actor"), tree) for part, tree in their_params.items()
    }
    inputs = dataclasses.replace(INPUTS, activity=activity)
    with jax.numpy_rank_promotion("allow"):
        for gradient in GRADIENTS:
            updates, state = ours.update(gradient, state, params, inputs=inputs)
            params = optax.apply_updates(params, updates)
            *states, _, _ = theirs.update(
                *states,
                {part: clip.update(tree, clip.init(tree))[0] for part, tree in as_theirs(gradient).items()},
                as_theirs(activity),
                key=jax.random.PRNGKey(1),
                training_prop=INPUTS.training,
                batch_prop=INPUTS.epoch,
                config={"VISUALISE": False},
                layer_props=as_theirs(shares),
                mask=mask,
            )
    moved = np.abs(flat(params) - flat(PARAMS)).max()
    want = {part: own.params for part, own in zip(LAYERS, states, strict=True)}
    error = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(as_theirs(params)), jax.tree.leaves(want), strict=True)
    )
    print(f"{name}: largest move {moved:.2e}, largest difference {error:.1e}")
    assert moved > 1e-4
    assert error < 1e-3 * moved
