import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest
import toy

from jaxrl import fit, memory
from jaxrl.training import advance_jit
from jaxrl.types import Algorithm

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    num_envs: int = 4
    num_steps: int = 128


def rollout(num_envs, num_steps=128, width=16) -> Algorithm:
    """Collects observations [T, B, D] and adds their mean to the parameters."""

    def init(key, hparams):
        return {"params": jnp.zeros(width), "key": key}

    def step(state, hparams):
        key, key_noise = jax.random.split(state["key"])

        def collect(carry, key):
            return carry, carry + jax.random.normal(key, (num_envs, width))

        start = jnp.broadcast_to(state["params"], (num_envs, width))
        _, obs = jax.lax.scan(collect, start, jax.random.split(key_noise, num_steps))
        order = jnp.argsort(obs[:, :, 0].reshape(-1))
        mean = obs.reshape(-1, width)[order].mean(0)
        return {"params": hparams * mean, "key": key}, {"loss/mean": mean.sum()}

    return Algorithm(
        init=init,
        step=step,
        act=lambda state, memory, obs, key: (obs, memory),
        hyperparams=lambda: jnp.float32(0.5),
        env_steps=num_envs * num_steps,
        config=Config(num_envs, num_steps),
    )


def test_estimate_is_near_what_the_compiled_program_takes():
    algorithm = rollout(1000)
    hparams = algorithm.hyperparams()
    estimate = memory.estimate(algorithm, hparams, 10)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), hparams)
    compiled = memory.compiled_bytes(advance_jit.lower(algorithm, state, hparams, 10).compile())
    assert estimate.state == 16 * 4 + 8
    assert estimate.metrics == 10 * 4
    assert estimate.step > 1000 * 128 * 16 * 4
    assert 0.7 < estimate.total / compiled < 2


def test_what_is_used_no_longer_is_not_counted():
    def chain(x):
        for _ in range(20):
            x = jnp.sin(x)
        return x

    big = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert memory._peak(jax.make_jaxpr(chain)(big).jaxpr) == 2 * 4000
    nested = jax.make_jaxpr(jax.jit(lambda x: chain(x).sum()))(big).jaxpr
    assert 2 * 4000 <= memory._peak(nested) <= 2 * 4000 + 8
    kept = jax.make_jaxpr(lambda x: [jnp.sin(x), jnp.cos(x), jnp.tan(x)])(big).jaxpr
    assert memory._peak(kept) == 4 * 4000


@pytest.fixture
def compilations(caplog):
    """Names of what is compiled from here on."""
    jax.config.update("jax_log_compiles", True)
    caplog.set_level(logging.WARNING, "jax")
    yield lambda: [line for line in caplog.messages if "Compiling" in line or "Finished XLA compilation" in line]
    jax.config.update("jax_log_compiles", False)


def test_too_large_a_run_is_refused_before_anything_of_it_is_compiled(compilations):
    algorithm = rollout(10**7)
    hparams = algorithm.hyperparams()
    with pytest.raises(
        ValueError, match=r"The run would take about [\d,.]+ GiB .*Lower config.num_envs \(now 10{7}\)"
    ) as caught:
        fit.fit(algorithm, hparams, seed=0, total_iterations=4, segment=2)
    assert "config.num_steps (now 128)" in str(caught.value)
    assert not [line for line in compilations() if "jit(_advance)" in line or "jit(_init)" in line]


def test_the_log_would_have_shown_a_compilation(compilations):
    algorithm = rollout(3)
    fit.fit(algorithm, algorithm.hyperparams(), seed=0, total_iterations=4, segment=2)
    assert [line for line in compilations() if "jit(_advance)" in line]
    assert [line for line in compilations() if "jit(_init)" in line]


def test_what_the_compiled_program_takes_is_checked_too(monkeypatch):
    algorithm = toy.algorithm_of(3)
    monkeypatch.setattr(memory, "compiled_bytes", lambda compiled: 10**15)
    with pytest.raises(ValueError, match=r"as compiled.*Lower num_seeds \(now 3\)"):
        fit.fit(algorithm, algorithm.hyperparams(), seed=0, total_iterations=4, segment=2, num_seeds=3)


def test_check():
    algorithm = rollout(8)
    memory.check(5 * GIB, 5 * GIB, algorithm, None)
    memory.check(5 * GIB, None, algorithm, None)
    with pytest.raises(
        ValueError, match=r"about 6 GiB \(state\), but 5 GiB are free.*Lower num_seeds \(now 4\), config.num_envs"
    ):
        memory.check(6 * GIB, 5 * GIB, algorithm, 4, "state")
    assert memory.knobs(toy.noisy_descent(), None) == "the sizes in its config"


def test_available_respects_a_limit_of_the_group(tmp_path):
    free = memory.available()
    assert 10 * 2**20 < free < 2**50
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    assert memory._group_limit(str(tmp_path / "max"), str(tmp_path / "current")) == 600
    (tmp_path / "max").write_text("max\n")
    assert memory._group_limit(str(tmp_path / "max"), str(tmp_path / "current")) is None


def test_running_out_of_device_memory_names_what_to_lower():
    with (
        pytest.raises(ValueError, match=r"ran out of memory.*Lower config.num_envs \(now 8\)"),
        memory.explained(rollout(8), None),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained(rollout(8), None):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")
