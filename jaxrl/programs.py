"""Compiled programs of a run: traced once, checked against the memory that there is, kept for the next run.

A program serves segments of every length, since the number of iterations is data.
"""

import collections
import concurrent.futures
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import memory, processes
from jaxrl.evaluation import Episodes, EvaluationPlan
from jaxrl.ops import trees
from jaxrl.types import Algorithm, Hyperparams, Key, Metrics, State

_MAX_PROGRAMS = 24
_programs: collections.OrderedDict[Any, "concurrent.futures.Future[Any]"] = collections.OrderedDict()
_programs_lock = threading.Lock()
_compilers = concurrent.futures.ThreadPoolExecutor(2, "compile")


class Programs(NamedTuple):
    """What `fit` runs, compiled.

    Attributes:
      init: `(key, hparams) -> state`.
      advance: `(state, hparams, number of iterations) -> (state, metrics)`; the state is donated.
      play: `(key, state, hparams) -> Episodes`, or None without an evaluation.
    """

    init: Any
    advance: Any
    play: Any


def prepare(
    algorithm: Algorithm,
    key: Key,
    hparams: Hyperparams,
    segment: int,
    num_seeds: int | None = None,
    evaluation: EvaluationPlan | None = None,
) -> Programs:
    """Compiles what `fit` needs, side by side, or finds it among what this process has compiled before.

    May be called in a thread, so that one run is compiled while another one trains.

    Args:
      algorithm: as for `jaxrl.fit.fit`.
      key: of shape [], or [P].
      hparams: as for `jaxrl.fit.fit`; only shapes matter.
      segment: as for `jaxrl.fit.fit`.
      num_seeds: as for `jaxrl.fit.fit`.
      evaluation: as for `jaxrl.fit.fit`.

    Raises:
      OutOfMemoryError: the memory that there is does not suffice; the message names what to lower.
    """
    hparams = trees.as_arrays(hparams)
    key, _ = split_key(key)
    template = state_template(algorithm, key, hparams)

    def check_estimate(traced: Any) -> None:
        num_devices = memory.num_devices(traced.jaxpr.jaxpr)
        if processes.is_several() and num_devices != jax.device_count():
            raise ValueError(
                f"Of {jax.process_count()} processes each must have its part of the program, but it is spread over "
                f"num_devices = {num_devices} of {jax.device_count()} devices: "
                f"population(..., num_devices={jax.device_count()}) is spread over all."
            )
        needed = memory.estimate_of_trace(traced, template)
        have = _available(num_devices)
        memory.check(needed.total, have, algorithm, num_seeds, memory.describe(needed))

    with memory.explained(algorithm, num_seeds):
        # Tracing holds Python's lock, compiling does not.
        advance = _compiled(_advance, (algorithm,), (template, hparams, jnp.int32(segment)), (segment,), check_estimate)
        init = _compiled(_init, (algorithm,), (key, hparams))
        play = evaluation and _compiled(_play, (evaluation.play,), (key, template, hparams))
        programs = Programs(init.result(), advance.result(), play and play.result())
    have = _available(len(programs.advance.input_shardings[0][2].device_set))
    memory.check(memory.compiled_bytes(programs.advance) or 0, have, algorithm, num_seeds, "as compiled")
    return programs


def state_template(algorithm: Algorithm, key: Key, hparams: Hyperparams) -> State:
    """Shapes and dtypes of the algorithm's state, without computing one."""
    return jax.eval_shape(functools.partial(_init, algorithm), key, hparams)


def placed(program: Any, *arguments: Any) -> tuple[Any, ...]:
    """Arguments where the program wants them: spread over devices if it is."""
    return processes.place(arguments, program.input_shardings[0])


def call(program: Any, *arguments: Any) -> Any:
    """Runs a compiled program with arguments put where it wants them."""
    return program(*placed(program, *arguments))


def placed_number(program: Any, number: int) -> jax.Array:
    """The number of iterations where `Programs.advance` wants it."""
    return processes.place(jnp.int32(number), program.input_shardings[0][2])


def split_key(key: Key) -> tuple[Key, Key]:
    """Keys of training and evaluation, each of shape [] or [P] as the key is."""
    pairs = jax.random.split(key) if not key.ndim else jax.vmap(jax.random.split, out_axes=1)(key)
    return pairs[0], pairs[1]


def evaluation_key(key: Key, number: int) -> Key:
    """Key of the evaluation after so many iterations, from the second of `split_key`."""
    return jax.random.fold_in(key, number) if not key.ndim else jax.vmap(jax.random.fold_in, (0, None))(key, number)


@functools.partial(jax.jit, static_argnames=("algorithm", "capacity"), donate_argnames=("state",))
def _advance(
    algorithm: Algorithm, state: State, hparams: Hyperparams, num_steps: jax.Array, capacity: int
) -> tuple[State, Metrics]:
    """`training.advance` by a number of steps that is data, at most `capacity`: one program for all segments."""
    # An inner jit is traced once, though both `eval_shape` and the loop use it.
    step = jax.jit(algorithm.step, inline=True)
    rows = jax.tree.map(lambda m: jnp.zeros((capacity, *m.shape), m.dtype), jax.eval_shape(step, state, hparams)[1])

    def body(index: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = step(carry[0], hparams)
        return state, jax.tree.map(lambda all_rows, row: all_rows.at[index].set(row), carry[1], metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, rows))


@functools.partial(jax.jit, static_argnames="algorithm")
def _init(algorithm: Algorithm, key: Key, hparams: Hyperparams) -> State:
    return trees.as_arrays(algorithm.init(key, hparams))


@functools.partial(jax.jit, static_argnames="play")
def _play(
    play: Callable[[Key, State, Hyperparams], Episodes], key: Key, state: State, hparams: Hyperparams
) -> Episodes:
    return play(key, state, hparams)


def _available(num_devices: int) -> int | None:
    """Bytes free for all devices of all processes; on CPUs each process is taken to have a machine of its own."""
    have = memory.available(num_devices)
    return have * jax.process_count() if have is not None and jax.default_backend() == "cpu" else have


def _compiled(
    function: Any,
    statics: tuple[Any, ...],
    arguments: tuple[Any, ...],
    trailing: tuple[Any, ...] = (),
    check: Callable[[Any], None] = lambda traced: None,
) -> "concurrent.futures.Future[Any]":
    """Traces now, checks what was traced, and compiles in the background; once for equal arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    name = (function, statics, structure, shapes, trailing)
    with _programs_lock:
        if name not in _programs:
            traced = function.trace(*statics, *arguments, *trailing)
            check(traced)
            _programs[name] = _compilers.submit(lambda: traced.lower().compile())
            _programs[name].add_done_callback(lambda done: done.exception() and _programs.pop(name, None))
        while len(_programs) > _MAX_PROGRAMS:
            _programs.popitem(last=False)
        _programs.move_to_end(name)
        return _programs[name]
