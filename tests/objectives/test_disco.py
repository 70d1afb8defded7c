"""Disco103's rule against numbers of the authors' code, and with their weights against that code itself."""

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.objectives import disco, disco_file
from jaxrl.objectives.disco import Predictions, Sequence

T, B, ACTIONS = 5, 2, 3
SMALL = disco.rule(prediction_size=5, hidden=6, memory=3, embedding=4, channels=(3, 2), target_channels=(3,))
SIZES = {"prediction": 5, "hidden": 6, "memory": 3, "embedding": 4, "channels": (3, 2), "target": (3,), "bins": 9}
PUBLISHED = SIZES | {"prediction": 600, "hidden": 256, "memory": 128, "embedding": 16, "channels": (16, 2)}
PUBLISHED |= {"target": (16,), "bins": 601}


def file_of(path, sizes):
    """A file as the authors write it, of numbers from a fixed sequence."""
    p, h, m, e = (sizes[name] for name in ("prediction", "hidden", "memory", "embedding"))
    (c1, c2), (t1,), life = sizes["channels"], sizes["target"], "lstm/~/meta_lstm/~unroll"
    reads = 23 + 2 * c2
    shapes = {
        "lstm/linear": (m, h),
        "lstm/linear_1": (h, 1),
        "lstm/linear_2": (h, p),
        "lstm/linear_3": (h, p),
        "lstm/linear_4": (t1, 1),
        "lstm/lstm/linear": (reads + h, 4 * h),
        "lstm/sequential_1/conv1_d": (1, 2 * (h + c2), t1),
        f"{life}/lstm/linear": (e + m, 4 * m),
        f"{life}/mlp_2/~/linear_0": (reads + 2, e),
    }
    for root in ("lstm", life):
        for net in ("mlp", "mlp_1"):
            shapes |= {f"{root}/{net}/~/linear_0": (p, e), f"{root}/{net}/~/linear_1": (e, 1)}
        shapes |= {f"{root}/sequential/conv1_d": (1, 18, c1), f"{root}/sequential/conv1_d_1": (1, 2 * c1, c2)}
    draws = np.random.RandomState(0)
    arrays = {}
    for name in sorted(shapes):
        arrays[f"{name}/w"] = draws.normal(size=shapes[name]).astype(np.float32)
        arrays[f"{name}/b"] = draws.normal(size=shapes[name][-1:]).astype(np.float32)
    np.savez(path, **arrays)
    return arrays


def given(update, sizes):
    """Actions, rewards, ends and outputs of three networks; the last row is that of the last successor."""
    draws, p = np.random.RandomState(1 + update), sizes["prediction"]
    shapes = {
        "logits": (T + 1, B, ACTIONS),
        "y": (T + 1, B, p),
        "z": (T + 1, B, ACTIONS, p),
        "aux_pi": (T + 1, B, ACTIONS, ACTIONS),
        "q": (T + 1, B, ACTIONS, sizes["bins"]),
    }
    outputs = [{k: draws.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(3)]
    actions = draws.randint(0, ACTIONS, (T + 1, B)).astype(np.int32)
    return actions, draws.normal(size=(T, B)).astype(np.float32), draws.uniform(size=(T, B)) < 0.3, outputs


def sequence_of(actions, rewards, terminated, outputs):
    def predictions(outs, rows):
        x = {name: jnp.asarray(value[rows]) for name, value in outs.items()}
        return Predictions(x["logits"], x["y"], x["z"], x["aux_pi"], x["q"])

    now, then = slice(0, T), slice(1, T + 1)
    online, behavior, target = outputs
    return Sequence(
        action=jnp.asarray(actions[:-1]),
        reward=jnp.asarray(rewards),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros((T, B), bool),
        behavior=jnp.asarray(behavior["logits"][:-1]),
        here=predictions(online, now),
        there=predictions(online, then),
        target_here=predictions(target, now),
        target_there=predictions(target, then),
    )


def updates_of(rule):
    """Two updates, one after the other."""

    @jax.jit
    def run(weights, sequences):
        memory, moments, found = rule.initial_memory(), disco.initial_moments(), []
        for sequence in sequences:
            estimates, moments = disco.estimate(sequence, moments, jnp.float32(0.997), jnp.float32(0.95))
            targets, memory = rule.targets(weights, sequence, estimates, memory)
            parts = disco.losses(
                targets, sequence.here, sequence.there, sequence.action, sequence.terminated, estimates.target
            )
            loss = sum(parts[name] for name in ("policy", "y", "z", "next_policy")) + 0.2 * parts["value"]
            found.append({"targets": targets, "estimates": estimates, "loss": loss, "memory": memory})
        return found

    return run


RUN = updates_of(SMALL)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("disco") / "small.npz"
    file_of(path, SIZES)
    return disco_file.weights(path, SMALL)


# Of the second of two updates by the authors' code, with these sizes and numbers.
AUTHORS = {
    "policy": [[22.0992, 9.2486, 20.7233], [5.3237, 0.7346, 0.5781]],
    "y": [-0.4659, -0.6337, -1.4973, 0.2126, -0.4822],
    "z": [0.6154, 1.9856, -0.6857, 1.2344, 2.733],
    "loss": [3.0307, 4.9625, 2.1921, 3.4966, 2.495],
    "advantage": [1.0945, 1.4297, -2.6555, -0.467, 0.207],
    "memory": [-0.4077, -0.8226, -0.0008],
}


def seen(found):
    """What `AUTHORS` has of an update."""
    targets = found["targets"]
    return {
        "policy": np.asarray(targets.policy)[[0, -1], 0],
        "y": np.asarray(targets.y)[0, 1],
        "z": np.asarray(targets.z)[2, 0],
        "loss": np.asarray(found["loss"])[:, 1],
        "advantage": np.asarray(found["estimates"].normalized_advantage)[:, 0],
        "memory": np.asarray(found["memory"][1]),
    }


def test_two_updates_are_those_of_the_authors_code(small):
    found = RUN(small, [sequence_of(*given(i, SIZES)) for i in range(2)])
    for name, value in seen(found[1]).items():
        np.testing.assert_allclose(value, AUTHORS[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_order_of_actions_means_nothing(small):
    order = np.array([2, 0, 1])
    actions, rewards, terminated, outputs = given(0, SIZES)
    moved = [{k: v if k == "y" else v[:, :, order] for k, v in outs.items()} for outs in outputs]
    for outs in moved:
        outs["aux_pi"] = outs["aux_pi"][..., order]
    renamed = np.argsort(order)[actions].astype(np.int32)
    one, other = (
        RUN(small, 2 * [sequence_of(*rows)])[1]
        for rows in ((actions, rewards, terminated, outputs), (renamed, rewards, terminated, moved))
    )
    np.testing.assert_allclose(other["targets"].policy, np.asarray(one["targets"].policy)[..., order], atol=1e-4)
    np.testing.assert_allclose(other["targets"].y, one["targets"].y, atol=1e-4)
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-4)


def test_nothing_is_read_from_beyond_an_end(small):
    actions, rewards, terminated, outputs = given(0, SIZES)
    sequence = sequence_of(actions, rewards, np.zeros_like(terminated), outputs)
    estimates, _ = disco.estimate(sequence, disco.initial_moments(), jnp.float32(0.997), jnp.float32(0.95))
    cut = sequence.replace(truncated=jnp.zeros((T, B), bool).at[2, 0].set(True))
    after = estimates.replace(advantage=estimates.advantage.at[4].add(3.0))
    # Smaller weights, so that gates are not shut anyway.
    weights = jax.tree.map(lambda x: 0.3 * x, small)
    run = jax.jit(lambda sequence, estimates: SMALL.targets(weights, sequence, estimates, SMALL.initial_memory())[0].y)
    change = np.abs(np.asarray(run(cut, after) - run(cut, estimates))).max(-1) > 0
    assert change.tolist() == [[False, True], [False, True], [False, True], [True, True], [True, True]]


def test_advantages_are_standardized_by_moments_that_forget():
    estimates, moments = disco.estimate(
        sequence_of(*given(0, SIZES)), disco.initial_moments(), jnp.float32(0.9), jnp.float32(0.5)
    )
    np.testing.assert_allclose(
        [jnp.mean(estimates.normalized_advantage), jnp.std(estimates.normalized_advantage)], [0.0, 1.0], atol=1e-3
    )
    np.testing.assert_allclose(moments.weight, 0.99)
    difference = estimates.normalized_q_advantage - estimates.q_advantage / jnp.std(estimates.advantage)
    assert np.ptp(difference) < 1e-2 * np.ptp(estimates.normalized_q_advantage), "another shift or scale for q"


def test_a_file_must_be_whole(tmp_path):
    path = tmp_path / "weights.npz"
    arrays = file_of(path, SIZES)
    with pytest.raises(ValueError, match="do not have the shapes of the rule"):
        disco_file.weights(path)
    arrays.pop("lstm/linear_2/b")
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"missing are .*lstm/linear_2/b"):
        disco_file.weights(path, SMALL)
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        disco.rule(hidden=0)


FOLDER = os.environ.get("JAXRL_DISCO_FOLDER", "")


def authors(sizes, params):
    """Two updates by the authors' code."""
    import chex

    chex.Array = jax.Array | np.ndarray  # their checks do not know tracers by chex's own
    from disco_rl import agent, types
    from disco_rl.update_rules import disco as theirs

    settings = agent.get_settings_disco()
    net = settings.update_rule.net
    net.prediction_size, net.hidden_size = sizes["prediction"], sizes["hidden"]
    net.embedding_size = net.meta_rnn_kwargs.pred_embedding_size = (sizes["embedding"], 1)
    net.policy_channels = net.meta_rnn_kwargs.policy_channels = sizes["channels"]
    net.policy_target_channels = sizes["target"]
    net.meta_rnn_kwargs.embedding_size = (sizes["embedding"],)
    net.meta_rnn_kwargs.hidden_size = sizes["memory"]
    settings.update_rule.num_bins = sizes["bins"]
    rule, hyper = theirs.DiscoUpdateRule(**settings.update_rule), settings.hyper_params.to_dict()
    meta = rule.init_meta_state(jax.random.PRNGKey(0), {"x": jnp.zeros(())})
    found = []
    for update in range(2):
        actions, rewards, terminated, (online, behavior, target) = given(update, sizes)
        inputs = types.UpdateRuleInputs(
            observations=jnp.zeros((T + 1, B, 1)),
            actions=jnp.asarray(actions),
            rewards=jnp.asarray(rewards),
            is_terminal=jnp.asarray(terminated),
            behaviour_agent_out=jax.tree.map(jnp.asarray, behavior),
            agent_out=jax.tree.map(jnp.asarray, online),
            value_out=None,
        )
        unroll = lambda *_, outs=target: (jax.tree.map(jnp.asarray, outs), None)
        out, meta = rule.unroll_meta_net(
            params, {"x": jnp.zeros(())}, {}, meta, inputs, hyper, unroll, jax.random.PRNGKey(0)
        )
        loss = rule.agent_loss(inputs, out, hyper, False)[0] + rule.agent_loss_no_meta(inputs, out, hyper)[0]
        state = meta["rnn_state"]["lstm"]["meta_rnn_state"]
        found.append({"out": out, "loss": loss, "memory": (state.cell, state.hidden)})
    return found


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="JAXRL_DISCO_FOLDER names no folder with disco_rl, beside haiku, rlax, distrax")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("sizes", [SIZES, PUBLISHED], ids=["small", "published"])
def test_the_authors_code_with_the_authors_weights_gives_the_same_targets(sizes, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    pytest.importorskip("haiku")
    published = sizes is PUBLISHED
    path = Path(FOLDER) / "disco_rl/update_rules/weights/disco_103.npz" if published else tmp_path / "small.npz"
    if not published:
        file_of(path, sizes)
    params = {}
    for name, value in np.load(path).items():
        part, _, leaf = name.rpartition("/")
        params.setdefault(part, {})[leaf] = value
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = authors(sizes, params)
    rule = disco.rule() if published else SMALL
    run = updates_of(rule) if published else RUN
    found = run(disco_file.weights(path, rule), [sequence_of(*given(i, sizes)) for i in range(2)])
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        out = other["out"]
        for got, want in (
            (one["targets"].policy, out["pi"]),
            (one["targets"].y, out["y"]),
            (one["targets"].z, out["z"]),
            (one["estimates"].normalized_advantage, out["normalized_adv"]),
            (one["loss"], other["loss"]),
            *zip(one["memory"], other["memory"], strict=True),
        ):
            difference = np.abs(np.asarray(got) - np.asarray(want)).max() / max(np.abs(np.asarray(want)).max(), 1e-3)
            worst = max(worst, float(difference))
    with capsys.disabled():
        print(f"\ngreatest difference over the greatest entry: {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not FOLDER, reason="JAXRL_DISCO_FOLDER names no folder with the authors' disco_rl and its weights")
def test_the_published_weights_teach_an_agent_to_catch():
    """A random policy has -0.6; 464,000 steps of each of 5 seeds."""
    import jaxrl
    from jaxrl.algorithms import disco as agents

    agent = agents.disco(jaxrl.make_env("gymnax/Catch-bsuite"), config=agents.Config(num_envs=32, hidden=(64, 64)))
    weights = disco_file.weights(Path(FOLDER) / "disco_rl" / "update_rules" / "weights" / "disco_103.npz")
    hparams = agent.hyperparams(objective=weights, learning_rate=1e-2)
    run = jax.jit(jax.vmap(jaxrl.train(agent, 500), (0, None)))
    _, metrics = run(jax.random.split(jax.random.key(0), 5), hparams)
    total, count = (np.asarray(metrics[f"episode/{name}"])[:, -50:].sum(-1) for name in ("return_sum", "count"))
    print(np.round(total / count, 2))
    assert (total / count > 0.8).all()
