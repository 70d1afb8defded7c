"""The plan: what shares a program, how members are packed, and what is refused before anything compiles."""

import functools
import itertools

import jax
import numpy as np
import pytest
from sweeps import toys

import jaxrl
from jaxrl import memory, sweeps
from jaxrl.meta.layout import Layout, choose_layout
from jaxrl.ops.members import check_split
from jaxrl.sweeps.plan import Batch, describe_plan, fitted, make_plan, width_of

ENV = "probe/Policy"


def plan(over, algorithms=toys.descent, envs=ENV, **arguments):
    defaults = {"num_seeds": 2, "total_steps": 100, "layout": Layout(1, None)}
    over = over if isinstance(over, sweeps.Space) else sweeps.space(over)
    return make_plan(algorithms, envs, over, **(defaults | arguments))


def test_what_differs_in_structure_is_another_program_and_data_is_not():
    made = plan({"learning_rate": [0.1, 0.2], "config.num_weights": [2, 3, 4], "objective.target": [0.0, 1.0]})
    assert [group.config for group in made.groups] == [{"num_weights": n} for n in (2, 3, 4)]
    assert all(group.mapped == ("learning_rate", "objective.target") for group in made.groups)
    assert [group.member.config.num_weights for group in made.groups] == [2, 3, 4]
    assert [group.iterations for group in made.groups] == [13, 9, 7]
    assert made.num_members == 3 * 4 * 2


def test_each_pair_of_algorithm_and_environment_is_a_program():
    made = plan(
        {"learning_rate": [0.1, 0.2]},
        {"a": toys.descent, "b": functools.partial(toys.descent, config=toys.Config(num_weights=5))},
        [ENV, "probe/Constant"],
    )
    names = [(group.algorithm, group.env) for group in made.groups]
    assert names == list(itertools.product("ab", [ENV, "probe/Constant"]))
    assert made.groups[2].member.config.num_weights == 5


def test_a_leaf_with_one_value_is_not_mapped():
    (group,) = plan({"learning_rate": [0.3], "objective.target": [0.0, 1.0]}).groups
    assert group.mapped == ("objective.target",)
    hparams = group.hyperparams(group.batches[0], group.width)
    assert hparams.learning_rate.shape == ()
    assert float(hparams.learning_rate) == np.float32(0.3)


def test_every_member_is_in_exactly_one_batch_and_has_its_own_values():
    rates = [0.1 * k for k in range(1, 8)]
    for num_seeds, max_batch, layout in itertools.product(
        (1, 2, 5), (None, 1, 3, 4, 64), (Layout(1), Layout(1, 2), Layout(2, 2))
    ):
        (group,) = plan({"learning_rate": rates}, num_seeds=num_seeds, max_batch=max_batch, layout=layout).groups
        seen = []
        for batch in group.batches:
            width = width_of(group, batch)
            assert width >= batch.stop - batch.start
            check_split(width, *fitted(group.layout, width))
            got = np.broadcast_to(np.asarray(group.hyperparams(batch, width).learning_rate), width)
            lanes = range(batch.start, batch.stop)
            np.testing.assert_allclose(got[: len(lanes)], [rates[lane // num_seeds] for lane in lanes], rtol=1e-6)
            seen += lanes
        assert seen == list(range(7 * num_seeds))
        assert max_batch is None or group.width <= max(max_batch, group.layout.multiple)


def test_keys_depend_on_the_seed_alone():
    made = plan({"learning_rate": [0.1, 0.2, 0.3]}, num_seeds=3, max_batch=4)
    (group,) = made.groups
    keys = np.concatenate(
        [jax.random.key_data(group.keys(batch, group.width, 7))[: batch.stop - batch.start] for batch in group.batches]
    ).reshape(3, 3, -1)
    assert (keys == keys[:1]).all()
    assert len({tuple(key) for key in keys[0]}) == 3
    want = jax.random.key_data(jax.random.fold_in(jax.random.key(7), 2))
    np.testing.assert_array_equal(keys[1, 2], want)


def test_halves_part_a_batch():
    for size, multiple in itertools.product(range(2, 40), (1, 2, 4, 6)):
        first, second = Batch(0, 10, 10 + size).halves(multiple)
        assert (first.start, first.stop, second.stop) == (10, second.start, 10 + size)
        assert 0 < first.stop - first.start < size


def test_batches_fit_the_memory_that_is_free(monkeypatch):
    over = {"learning_rate": [0.001 * k for k in range(1, 101)]}
    monkeypatch.setattr(memory, "available", lambda num_devices=1: 10**9)
    (roomy,) = plan(over).groups
    assert (roomy.width, len(roomy.batches)) == (200, 1)
    free = 20 * roomy.bytes_member
    monkeypatch.setattr(memory, "available", lambda num_devices=1: free)
    (tight,) = plan(over).groups
    assert 1 < tight.width * tight.bytes_member + tight.bytes_shared <= free
    assert len(tight.batches) == -(-200 // tight.width)
    # Nearly equal: the last batch lacks less than one member for each batch.
    assert tight.width * len(tight.batches) - 200 < len(tight.batches)


def test_the_horizon_is_the_training_unless_it_is_given():
    (group,) = plan({"learning_rate": [0.1, 0.2]}).groups
    assert group.values["horizon"].tolist() == [9 * 12.0] * 2
    (group,) = plan({"horizon": [50.0, 70.0]}).groups
    assert group.values["horizon"].tolist() == [50.0, 70.0]


def test_array_leaves_and_fixed_values():
    (group,) = plan({"offsets": [(1.0, 2.0), (3.0, 4.0)]}, fixed={"learning_rate": 0.7, "config.num_weights": 9}).groups
    assert group.values["offsets"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert group.values["learning_rate"].tolist() == [np.float32(0.7)] * 2
    assert group.member.config.num_weights == 9


def test_a_name_of_one_algorithm_is_swept_under_a_condition():
    ppo = functools.partial(jaxrl.ppo)
    over = sweeps.space({"learning_rate": [0.1, 0.2], "gamma": [0.9, 0.99]}, conditions={"gamma": "algorithm == 'ppo'"})
    made = plan(over, {"ppo": ppo, "descent": toys.descent}, total_steps=512)
    assert [len(group.settings) for group in made.groups] == [4, 2]
    assert made.pairs["descent", ENV].cells.tolist() == [[0, 0], [1, 1]]


def test_the_plan_in_words():
    lines = describe_plan(plan({"learning_rate": [0.1, 0.2], "config.loud": [True, False]}))
    assert lines[0] == "8 members: 4 settings x 2 seeds, each of 100 steps"
    assert lines[1] == "2 compiled programs, 2 batches"
    assert "descent on probe/Policy (loud = True); 4 members in 1 batch of up to 4; 1 device, all" in lines[2]


def test_layouts(monkeypatch):
    # Another test of the process may have asked for a device a core.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
    hparams = agent.hyperparams()
    assert choose_layout(agent, hparams, 8).chunk == 8
    assert choose_layout(agent, hparams, 7).chunk == 7
    assert choose_layout(agent, hparams, 64).chunk == 16
    from jaxrl.algorithms import ppo

    large = jaxrl.ppo(jaxrl.make_env("gymnax/Breakout-MinAtar"), config=ppo.Config(num_envs=256))
    assert choose_layout(large, large.hyperparams(), 8).chunk == 1
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert choose_layout(agent, hparams, 8) == Layout(4, 2)
    assert choose_layout(agent, hparams, 6) == Layout(3, 2)
    assert choose_layout(agent, hparams, 7) == Layout(1, 7)
    assert choose_layout(agent, hparams, 7, exact=False) == Layout(4, 2)


@pytest.mark.parametrize(
    ("over", "arguments", "message"),
    [
        (
            {"learning_rat": [0.1]},
            {},
            "No hyperparameter is called 'learning_rat'.*learning_rate",
        ),
        ({"config.num_weight": [1]}, {}, r"called 'config.num_weight'. Did you mean config.num_weights"),
        ({"target": [1.0]}, {}, "Did you mean objective.target"),
        ({"config.num_weights": [2.5]}, {}, r"config.num_weights must be an integer; got 2.5"),
        ({"config.loud": [1]}, {}, r"config.loud must be true or false; got 1"),
        ({"offsets": [(1.0, 2.0, 3.0)]}, {}, r"offsets must be float32 of shape \(2,\); got \(1.0, 2.0, 3.0\)"),
        ({"learning_rate": [-1.0]}, {}, r"learning_rate must be from 0.0 to"),
        ({"learning_rate": [0.1]}, {"fixed": {"learning_rate": 0.2}}, "learning_rate cannot be both fixed and swept"),
        ({"learning_rate": [0.1]}, {"num_seeds": 0}, "num_seeds must be at least 1; got num_seeds = 0"),
        (
            {"learning_rate": [0.1]},
            {"num_seeds": 10**7},
            r"at least 10,000,000 members \(1 settings x 10000000 seeds\)",
        ),
        ({"learning_rate": [0.1]}, {"algorithms": "pp"}, "No algorithm is called 'pp'. Did you mean ppo"),
        ({"learning_rate": [0.1]}, {"algorithms": lambda env: None}, "needs an argument `config`"),
        ({"learning_rate": [0.1]}, {"envs": "probe/Polic"}, "probe/Policy"),
        ({"learning_rate": [0.1]}, {"envs": [ENV, ENV]}, "no two of one name"),
        ({"learning_rate": [0.1]}, {"envs": []}, "at least one environment"),
    ],
)
def test_bad_sweeps_are_refused(over, arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(over, **arguments)
