"""Optuna's ask and tell over batches of members: what is asked, trained and told."""

import importlib

import jax
import numpy as np
import pytest
from sweeps import toys
from sweeps.test_halving import player

import jaxrl
from jaxrl import programs, sweeps
from jaxrl.meta.layout import Layout
from jaxrl.sweeps.optimize import optimize

OVER = {"learning_rate": sweeps.log(1e-3, 1.0), "objective.target": sweeps.uniform(0.0, 2.0)}
ARGUMENTS = {"num_trials": 6, "batch_size": 3, "num_seeds": 2, "total_steps": 120, "layout": Layout(1, None)}


@pytest.fixture
def optuna():
    found = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    found.logging.set_verbosity(found.logging.WARNING)
    return found


def search(over=OVER, algorithm=toys.descent, env="probe/Policy", **changes):
    return optimize(algorithm, env, over, **(ARGUMENTS | changes))


@pytest.fixture
def compiled(monkeypatch):
    """Names and widths of the populations that `fit` has compiled a program for."""
    seen = []
    original = programs._advance.trace

    class Watched:
        @staticmethod
        def trace(algorithm, *arguments):
            seen.append(algorithm.name)
            return original(algorithm, *arguments)

    programs._programs.clear()
    monkeypatch.setattr(programs, "_advance", Watched)
    return seen


def test_a_trial_scores_what_its_members_score_alone(optuna):
    """Equal to 1e-5 relative: the order of sums."""
    data = search().data
    assert dict(data["score"].sizes) == {"trial": 6, "seed": 2}
    assert data["round"].values.tolist() == [0, 0, 0, 1, 1, 1]
    agent = toys.descent()
    for trial in range(6):
        one = data.isel(trial=trial)
        hparams = agent.hyperparams(
            learning_rate=one["learning_rate"].item(),
            objective=toys.Objective(np.float32(one["objective.target"].item())),
        )
        for seed in range(2):
            key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
            _, metrics = jax.jit(jaxrl.train(agent, 10))(key, hparams)
            want = metrics["episode/return_sum"][-1] / metrics["episode/count"][-1]
            np.testing.assert_allclose(one["score"].values[seed], want, rtol=1e-5)
    assert data.attrs["env_steps"] == 6 * 2 * 120


def test_what_is_told_is_what_was_found(optuna):
    found = search()
    told = [trial.value for trial in found.study.trials]
    np.testing.assert_allclose(told, found.data["score"].mean("seed"), rtol=1e-6)
    assert found.study.best_trial.number == found.data.attrs["best_trial"] == int(np.argmax(told))
    params = [trial.params["learning_rate"] for trial in found.study.trials]
    np.testing.assert_array_equal(params, found.data["learning_rate"])


def test_equal_seeds_give_equal_trials_and_the_sampler_learns(optuna):
    found = search(num_trials=32, batch_size=8, total_steps=24)
    again = search(num_trials=32, batch_size=8, total_steps=24)
    np.testing.assert_array_equal(found.data["score"], again.data["score"])
    # After one step the error is what the rate leaves of it, so the best rate is the highest. Random draws would have a
    # mean logarithm of -1.5 with a standard error of 0.3.
    late = np.log10(found.data["learning_rate"].values[-8:])
    assert late.mean() > -0.8
    other = search(num_trials=3, seed=1)
    assert other.data["learning_rate"].values[0] != found.data["learning_rate"].values[0]


def test_every_round_runs_the_same_program(optuna, compiled):
    search(num_trials=8)
    assert compiled == ["population(descent, 6)"]


def test_choices_of_the_config_compile_a_few_programs_each(optuna, compiled):
    over = {"learning_rate": sweeps.log(1e-3, 1.0), "config.num_weights": sweeps.choice(2, 3)}
    found = search(over, num_trials=12, batch_size=4)
    weights = found.data["config.num_weights"].values
    assert set(weights) == {2, 3}
    want = set()
    for index in range(0, 12, 4):
        for num in (2, 3):
            count = int(np.sum(weights[index : index + 4] == num))
            want |= {(num, 2 * w) for w in (1, 2, 4) if count and count <= w < 2 * count}
    assert len(compiled) == len(want)
    # The scores are those of the right trials: a trial alone has the same.
    trial = 7
    alone = search(
        {"learning_rate": sweeps.log(1e-3, 1.0)},
        num_trials=1,
        sampler=_Listed(optuna, {"learning_rate": found.data["learning_rate"].values[trial]}),
        fixed={"config.num_weights": int(weights[trial])},
    )
    np.testing.assert_allclose(alone.data["score"][0], found.data["score"][trial], rtol=1e-5)


def _Listed(optuna, values):
    class Listed(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study, trial):
            return {}

        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, name, distribution):
            return values[name]

    return Listed()


def test_every_kind_of_distribution(optuna):
    over = {
        "learning_rate": sweeps.choice(0.1, 0.2),
        "offsets": sweeps.choice((0.0, 0.0), (1.0, -1.0)),
        "objective.target": sweeps.integers(0, 3),
        "config.loud": sweeps.choice(True, False),
    }
    space = sweeps.space(over, num_samples=1)
    data = search(space, num_trials=8, batch_size=8, sampler=optuna.samplers.RandomSampler(seed=0)).data
    assert set(data["learning_rate"].values) == {0.1, 0.2}
    assert set(data["objective.target"].values) <= {0, 1, 2, 3}
    assert set(data["config.loud"].values) == {"true", "false"}
    assert len(set(data["offsets"].values)) == 2


def test_a_trial_that_diverges_is_told_as_the_worst(optuna):
    over = {"learning_rate": sweeps.choice(0.1, 1e5)}
    found = search(over, total_steps=480, sampler=optuna.samplers.RandomSampler(seed=0))
    bad = found.data["learning_rate"].values == 1e5
    assert 0 < bad.sum() < 6
    np.testing.assert_array_equal(found.data["diverged"].values, np.stack([bad, bad], 1))
    told = np.asarray([trial.value for trial in found.study.trials])
    assert np.all(told[bad] == -np.inf)
    assert np.isfinite(told[~bad]).all()
    assert not bad[found.data.attrs["best_trial"]]


def test_evaluations_tell_the_score_if_there_are_any(optuna):
    arguments = {
        "algorithm": player,
        "env": "probe/ContinuousObservation",
        "over": {"learning_rate": OVER["learning_rate"]},
    }
    played, trained = (search(eval_episodes=number, **arguments).data["score"] for number in (3, 0))
    assert np.all(played <= 0)
    assert not np.any(np.isclose(played[0], trained[0]))


def test_progress(optuna):
    seen = []
    found = search(on_progress=seen.append)
    assert [(progress.num_trials, progress.total_trials) for progress in seen] == [(3, 6), (6, 6)]
    assert seen[-1].best_score == pytest.approx(found.study.best_value)
    assert seen[-1].best == found.study.best_params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 0}, "num_trials must be at least 1; got num_trials = 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_episodes": -1}, "eval_episodes must be at least 0"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"over": {}}, "at least one name with a distribution; got none"),
        ({"over": {"learning_rate": [0.1]}}, r"learning_rate must have a distribution.*A list is choice"),
        ({"over": {"rate": sweeps.log(0.1, 1.0)}}, "No hyperparameter is called 'rate'"),
        ({"over": sweeps.space({"learning_rate": [0.1]})}, "takes a space of distributions alone"),
        ({"env": ["probe/Policy", "probe/Credit"]}, "takes one algorithm and one environment"),
    ],
)
def test_bad_arguments_are_refused(optuna, changes, message):
    with pytest.raises(ValueError, match=message):
        search(**changes)


def test_without_optuna_the_message_names_the_extra(monkeypatch):
    original = importlib.import_module

    def missing(name, *arguments):
        if name == "optuna":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r'pip install "jaxrl\[optuna\]"'):
        search()
