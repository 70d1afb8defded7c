"""What each command takes. Imports nothing heavy: neither jax nor an environment."""

import argparse
import ast
import difflib
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jaxrl._version import __version__


class UsageError(ValueError):
    """The arguments of a command are wrong."""


class Command(NamedTuple):
    """What is to be run.

    Attributes:
      module: below `jaxrl.cli`.
      function: of that module, called with the options.
      options: the arguments; `assignments` holds the `name=value` texts.
    """

    module: str
    function: str
    options: argparse.Namespace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` explains.")


_parser = functools.partial(
    _Parser,
    allow_abbrev=False,
    add_help=False,
    formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28),
)


def parse(argv: Sequence[str]) -> Command | None:
    """Turns arguments into a command, or prints the help that they ask for.

    Returns:
      The command; None if there is nothing more to do.

    Raises:
      UsageError: an argument is unknown, missing or malformed.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return None
    if name in ("-V", "--version", "version"):
        print(f"jaxrl {__version__}")
        return None
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `jaxrl {near[0]}`?" if near else f"there are {', '.join(COMMANDS)}."
        raise UsageError(f"no command is called {name!r}; {hint}")
    spec = COMMANDS[name]
    parser = spec.parser()
    if {"-h", "--help"} & set(rest):
        words = [word for word in rest if not word.startswith("-") and "=" not in word]
        if name == "train" and words:
            options = argparse.Namespace(algorithm=words[0], env=next(iter(words[1:]), None), parser=parser)
            return Command("help", "algorithm_help", options)
        parser.print_help()
        return None
    options, extras = parser.parse_known_args(rest)
    takes_assignments = name in ("train", "resume", "sweep", "meta-train", "meta-test")
    options.assignments = [text for text in extras if takes_assignments and "=" in text and not text.startswith("-")]
    if strange := [text for text in extras if text not in options.assignments]:
        near = _nearest_option(parser, strange[0])
        parser.error(f"unknown argument {strange[0]!r}" + (f" (did you mean {near}?)" if near else ""))
    return Command(spec.module, spec.function, options)


def algorithm_summaries() -> dict[str, str]:
    """Name and summary of each algorithm, read from the registry's source, since importing it would import jax."""
    spec = importlib.util.find_spec("jaxrl")
    folder = spec and next(iter(spec.submodule_search_locations or []), None)
    tree = ast.parse((Path(folder or ".") / "algorithms" / "registry.py").read_text())
    found: dict[str, str] = {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ALGORITHMS"):
            continue
        entries = node.value if isinstance(node.value, ast.Dict) else ast.Dict([], [])
        for key, value in zip(entries.keys, entries.values, strict=True):
            texts = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant)]
            found[ast.literal_eval(key or ast.Constant(""))] = next(text for text in texts if isinstance(text, str))
    return found


def count(text: str) -> int:
    """Reads a positive integer; `5e5` and `500_000` are such."""
    number = count_or_zero(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return number


def count_or_zero(text: str) -> int:
    """Reads an integer that is not negative; `5e5` and `500_000` are such."""
    try:
        number = float(text)
        if number < 0 or number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    return int(text) if text.strip().replace("_", "").isdigit() else int(number)


def seconds(text: str) -> float:
    """Reads a duration in seconds that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return number


def _train_parser() -> argparse.ArgumentParser:
    algorithms = "\n".join(f"  {name:<12} {summary}" for name, summary in algorithm_summaries().items())
    parser = _parser(
        prog="jaxrl train",
        usage="jaxrl train ALGORITHM ENV [name=value ...] [options]",
        description=(
            "Trains several seeds in one compiled program and keeps everything in a folder that\n"
            "`jaxrl resume`, `jaxrl evaluate` and `jaxrl plot` understand."
        ),
        epilog=(
            f"algorithms:\n{algorithms}\n\n"
            "name=value sets a hyperparameter or, as config.name=value, a field of the config:\n"
            "  jaxrl train ppo gymnax/CartPole-v1 learning_rate=1e-3 env.gravity=5 config.num_envs=16\n"
            "`jaxrl train ALGORITHM --help` lists all of them, `jaxrl train ALGORITHM ENV --help` those\n"
            "of the environment as well."
        ),
    )
    parser.add_argument("algorithm", metavar="ALGORITHM", help="name, as `jaxrl list algorithms` prints it")
    parser.add_argument("env", metavar="ENV", help="suite/Name, as `jaxrl list envs` prints it")
    parser.add_argument(
        "--total-steps",
        type=count,
        default=500_000,
        metavar="N",
        help="environment steps of each seed, rounded up to whole iterations; 5e5 and 500_000 are allowed "
        "(default 500000)",
    )
    parser.add_argument("--num-seeds", type=count, default=8, metavar="N", help="seeds side by side (default 8)")
    parser.add_argument(
        "--seed", type=count_or_zero, default=0, metavar="N", help="from which all randomness follows (default 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default runs/ALGORITHM-ENV-TIME)")
    parser.add_argument(
        "--segments",
        type=count,
        default=50,
        metavar="N",
        help="parts of the run between which metrics are written and progress is shown (default 50)",
    )
    parser.add_argument(
        "--evaluations",
        type=count_or_zero,
        default=5,
        metavar="N",
        help="evaluations, evenly spread, the last at the end; 0 for none (default 5)",
    )
    parser.add_argument(
        "--eval-episodes", type=count, default=16, metavar="N", help="episodes of each evaluation and seed (default 16)"
    )
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="static option of the environment's constructor, for instance backend=mjx; may be repeated",
    )
    parser.add_argument(
        "--sink",
        action="append",
        default=[],
        choices=("tensorboard", "wandb"),
        help="where else the numbers go, besides log.jsonl; may be repeated. wandb is offline unless WANDB_MODE says "
        "otherwise, its project is WANDB_PROJECT or jaxrl",
    )
    parser.add_argument(
        "--objective",
        metavar="NAME|FILE",
        help="in place of the algorithm's own: a written one (clip, dpo, spo, kl_penalty, mdpo, ...), or the file of a "
        "learned rule (rule.npz), which the folder gets a copy of",
    )
    _add_common(parser)
    return parser


def _sweep_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl sweep",
        usage="jaxrl sweep ALGORITHM[,...] ENV[,...] [name=value ...] --over name=values ... [options]",
        description=(
            "Trains every setting of a grid or sample with several seeds, in as few compiled programs as there\n"
            "are shapes, and keeps everything in a folder that `jaxrl resume` continues."
        ),
        epilog=(
            "what --over understands:\n"
            "  gae_lambda=0.9,0.95                      a grid; several names make a product\n"
            "  learning_rate=log(1e-4,1e-2,8)           8 values evenly spaced by ratio; also linear(a,b,n)\n"
            "  config.num_envs=16,64                    a field of the config: one program for each value\n"
            "  objective.clip=uniform(0.1,0.3)          drawn --samples times; also log(a,b), integers(a,b),\n"
            "                                           choice(a,b,...)\n"
            "  learning_rate,gamma=(1e-3,0.99),(1e-4,1) zipped: one dimension\n"
            "  'value_clip=0.1,0.3 if config.clip_value == true'   swept only where the condition holds\n\n"
            "name=value before --over holds for all settings. Several algorithms or environments are separated\n"
            "by commas."
        ),
    )
    parser.add_argument("algorithms", metavar="ALGORITHM", help="names, as `jaxrl list algorithms` prints them")
    parser.add_argument("envs", metavar="ENV", help="suite/Name, as `jaxrl list envs` prints them")
    parser.add_argument("--over", nargs="+", action="extend", default=[], metavar="NAME=VALUES", help="see below")
    parser.add_argument(
        "--samples", type=count_or_zero, default=0, metavar="N", help="draws of what has a distribution"
    )
    parser.add_argument(
        "--method", choices=("sobol", "random"), default="sobol", help="how it is drawn (default sobol: evenly spread)"
    )
    parser.add_argument("--where", metavar="CONDITION", help="leaves out settings, for instance 'config.num_envs < 64'")
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="settings from a table instead of --over")
    parser.add_argument("--num-seeds", type=count, default=8, metavar="N", help="seeds of each setting (default 8)")
    parser.add_argument(
        "--total-steps", type=count, default=500_000, metavar="N", help="of each member (default 500000)"
    )
    parser.add_argument("--seed", type=count_or_zero, default=0, metavar="N", help="of keys and draws (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default runs/sweep-ALGORITHM-ENV-TIME)")
    parser.add_argument("--plan", action="store_true", help="say what would be run, with estimates, and stop")
    parser.add_argument(
        "--shard",
        type=share,
        default=(0, 1),
        metavar="I/N",
        help="only the I-th of N shares (I from 0), for N processes on one folder, such as a job array; needs --out",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run the batches as tasks on a Ray cluster, whose machines share --out; without ADDRESS on one that is "
        "started here",
    )
    parser.add_argument(
        "--eval-episodes",
        type=count_or_zero,
        default=16,
        metavar="N",
        help="episodes of each member at its end, whose mean is its score; 0 for none (default 16)",
    )
    parser.add_argument("--points", type=count, default=50, metavar="N", help="points of each curve (default 50)")
    parser.add_argument(
        "--max-batch", type=count, metavar="N", help="most members at once (default: what memory takes)"
    )
    parser.add_argument("--devices", type=count, metavar="N", help="devices that share each batch (default: all)")
    parser.add_argument(
        "--chunk", type=count, metavar="N", help="members vmapped together on a device (default: chosen)"
    )
    parser.add_argument("--keep-states", action="store_true", help="keep the members' last states")
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="static option of the environments' constructors; may be repeated",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=seconds,
        default=60.0,
        metavar="S",
        help="how often the batch in progress is saved (default 60)",
    )
    parser.add_argument(
        "--objective",
        metavar="NAME|FILE",
        help="in place of the algorithm's own: a written one (clip, dpo, spo, kl_penalty, mdpo, ...), or the file of a "
        "learned rule (rule.npz), which the folder gets a copy of",
    )
    _add_help(parser)
    return parser


def share(text: str) -> tuple[int, int]:
    """Reads `i/n` with 0 <= i < n."""
    index, _, number = text.partition("/")
    if not index.isdigit() or not number.isdigit() or not int(index) < int(number):
        raise argparse.ArgumentTypeError(f"must be I/N with 0 <= I < N, for instance 0/4; got {text!r}")
    return int(index), int(number)


def _resume_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl resume",
        usage="jaxrl resume DIR [name=value ...] [options]",
        description=(
            "Continues a run from its newest whole checkpoint, bit for bit as if it had never stopped.\n"
            "name=value changes a hyperparameter from there on; the change is kept in run.json.\n"
            "A sweep is continued too: what was whole is not computed again."
        ),
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the run or sweep")
    parser.add_argument(
        "--total-steps",
        type=count,
        metavar="N",
        help="environment steps of each seed since its beginning (default: as recorded)",
    )
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-plot", action="store_true", help="do not draw curves.png at the end")
    parser.add_argument(
        "--checkpoint-seconds",
        type=seconds,
        default=30.0,
        metavar="S",
        help="a checkpoint is written when so much time has passed, and after each evaluation (default 30)",
    )
    _add_help(parser)


def _meta_train_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl meta-train",
        usage="jaxrl meta-train KIND (--env ENV | --tasks ENV) [name=value ...] [options]",
        description=(
            "Evolves the weights of a learned objective by the returns of the agents that it teaches. The folder\n"
            "gets rule.npz, the mean of the generation that did best on held-out learners so far, which\n"
            "`jaxrl train ... --objective` and `jaxrl meta-test` take. `jaxrl resume DIR` goes on."
        ),
        epilog=(
            "kinds:\n"
            "  lpo      a drift of ratio and advantage for ppo (Lu et al. 2022)\n"
            "  ta_lpo   one that changes with progress (Jackson et al. 2024)\n"
            "  lpg      a rule over rollouts for discrete actions (Oh et al. 2020)\n"
            "  ta_lpg   one that sees progress and the length of life (Jackson et al. 2024)\n\n"
            "name=value and config.name=value are the inner agent's, as for `jaxrl train ppo` and\n"
            "`jaxrl train lpg`. Where states are numbered, lpg's agents are tables (config.tabular=true\n"
            "config.optimizer=sgd learning_rate=40 prediction_learning_rate=4) unless you say otherwise."
        ),
    )
    parser.add_argument("kind", choices=("lpo", "ta_lpo", "lpg", "ta_lpg"), metavar="KIND", help="see below")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--env", metavar="ENV", help="suite/Name, in which all learners learn")
    where.add_argument(
        "--tasks", metavar="ENV", help="one with levels (grids/*, chains/*), of which each pair of candidates draws one"
    )
    parser.add_argument("--generations", type=count, default=200, metavar="N", help="of the search (default 200)")
    parser.add_argument(
        "--held-out-every", type=count, default=10, metavar="N", help="generations between looks (default 10)"
    )
    parser.add_argument(
        "--held-out", type=count, metavar="N", help="learners of each look (default 16; with --tasks 64)"
    )
    parser.add_argument("--population", type=count, metavar="P", help="candidates, even (default 32; with --tasks 64)")
    parser.add_argument(
        "--num-seeds", type=count, default=1, metavar="N", help="learners of each candidate (default 1)"
    )
    parser.add_argument(
        "--life",
        type=life,
        metavar="N|A:B",
        help="iterations that each learner lives, or a range from which each pair draws its own, log-uniform (default "
        "50; ta_lpg 10:100)",
    )
    parser.add_argument("--sigma", type=positive, default=0.1, metavar="X", help="of perturbations (default 0.1)")
    parser.add_argument("--meta-rate", type=positive, default=0.01, metavar="X", help="of Adam's steps (default 0.01)")
    parser.add_argument("--decay", type=positive, default=1.0, metavar="X", help="of both a generation (default 1)")
    parser.add_argument(
        "--shaping",
        choices=("centered_rank", "pairwise", "z_score", "raw"),
        help="of fitness (default centered_rank; lpg and ta_lpg pairwise)",
    )
    parser.add_argument(
        "--fitness",
        choices=("training", "evaluation"),
        help="mean return of the episodes of training, or of --eval-episodes after it (default training; lpg and "
        "ta_lpg evaluation)",
    )
    parser.add_argument("--eval-episodes", type=count, default=16, metavar="N", help="of each learner (default 16)")
    parser.add_argument(
        "--start",
        metavar="NAME|FILE",
        help="where the search begins: zero or ppo (lpo, ta_lpo), random or a2c (lpg, ta_lpg: by imitation), or the "
        "file of a rule of this kind (default zero, random)",
    )
    parser.add_argument(
        "--rule-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="size of the rule: hidden=64; for lpg also num_bins=8, embedding=16, core=gru; may be repeated",
    )
    parser.add_argument(
        "--seed", type=count_or_zero, default=0, metavar="N", help="from which all randomness follows (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default runs/meta-train-KIND-ENV-TIME)"
    )
    parser.add_argument("--plan", action="store_true", help="say what would be run, and stop")
    _add_time_limit(parser)
    _add_layout(parser)
    _add_env_option(parser)
    _add_help(parser)
    return parser


def _meta_test_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl meta-test",
        usage="jaxrl meta-test RULE.npz [RULE.npz ...] --envs ENV[,...] [name=value ...] [options]",
        description=(
            "Trains fresh agents by learned rules, by written ones and at random, in environments of your choice,\n"
            "all on the same seeds with the same inner settings, and makes a table: interquartile mean of the\n"
            "return after training, with its 95% bootstrap interval over seeds."
        ),
        epilog=(
            "The inner settings are those that the first rule was trained with. name=value and config.name=value\n"
            "change them for all; with a baseline's name in front for that one: ppo.learning_rate=1e-3.\n"
            "In an environment with levels (grids/*, chains/*) each seed is a level of its own, the same for all."
        ),
    )
    parser.add_argument("rules", type=Path, nargs="+", metavar="RULE.npz", help="files of rules of one family")
    parser.add_argument("--envs", required=True, metavar="ENV[,...]", help="suite/Name of each, with commas between")
    parser.add_argument(
        "--baselines",
        metavar="NAME[,...]",
        help="random, and for lpo and ta_lpo ppo, a2c, dpo and the other written objectives, for lpg and ta_lpg a2c "
        "and ppo (default ppo,a2c,random)",
    )
    parser.add_argument(
        "--life",
        type=counts,
        metavar="N[,...]",
        help="iterations that the agents live, one or several lengths (default: that of the first rule's training)",
    )
    parser.add_argument("--num-seeds", type=count, default=16, metavar="N", help="of each row (default 16)")
    parser.add_argument("--eval-episodes", type=count, default=16, metavar="N", help="of each agent (default 16)")
    parser.add_argument(
        "--actions",
        choices=("greedy", "sampled"),
        help="in evaluation (default: as the first rule's training had it)",
    )
    parser.add_argument("--seed", type=count_or_zero, default=0, metavar="N", help="of all agents (default 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the table (default runs/meta-test-KIND-TIME)"
    )
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="[ENV:]NAME=VALUE",
        help="static option of all environments' constructors, or of one: grids/Small:side=6,6; may be repeated",
    )
    _add_layout(parser)
    _add_help(parser)
    return parser


def _add_time_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time-limit", type=seconds, metavar="S", help="stop after so many seconds, with all saved (default: none)"
    )


def _add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices", type=count, metavar="N", help="devices that share the learners (default: all; 1 with --chunk)"
    )
    parser.add_argument("--chunk", type=count, metavar="N", help="learners at a time on a device (default: chosen)")


def _add_env_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="static option of the environments' constructors, for instance side=6,6; may be repeated",
    )


def positive(text: str) -> float:
    """Reads a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Reads positive integers with commas between."""
    return tuple(count(part) for part in text.split(","))


def life(text: str) -> tuple[int, int]:
    """Reads a positive integer, or a range of them `a:b`."""
    low, _, high = text.partition(":")
    found = count(low), count(high or low)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must be N or A:B with A <= B, got {text!r}")
    return found


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl evaluate",
        description="Plays whole episodes with a trained run, without learning, and prints their returns.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--episodes", type=count, default=64, metavar="N", help="episodes of each seed (default 64)")
    parser.add_argument(
        "--sampled", action="store_true", help="draw actions from the policy instead of taking its mode"
    )
    parser.add_argument(
        "--checkpoint", default="latest", metavar="best|latest|N", help="which one, N by iteration (default latest)"
    )
    parser.add_argument("--seed", type=count_or_zero, default=0, metavar="N", help="of the episodes (default 0)")
    _add_help(parser)
    return parser


def _plot_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl plot",
        description=(
            "Draws the learning curves of one run, or of several over each other, one panel an environment:\n"
            "mean over seeds with a 95% bootstrap interval. Works while training goes on. Of runs of\n"
            "`jaxrl meta-train` it draws the generations, of the file of a rule the rule."
        ),
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR|RULE.npz", help="folders of runs, or one rule")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="png, pdf or svg (default DIR/curves.png for one run, curves.png for several; generations.png; the "
        "rule's name with .png)",
    )
    parser.add_argument("--points", type=count, default=100, metavar="N", help="points of each curve (default 100)")
    _add_help(parser)
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl report",
        description=(
            "Makes one page of a sweep, or of several sweeps and runs: the best settings and their uncertainty,\n"
            "learning curves, what matters, tables, configuration. Needs no network to be read."
        ),
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="folders of sweeps or runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="html or md (default DIR/report.html)")
    _add_help(parser)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl compare",
        description=(
            "Says what differs between two runs or sweeps, and whether their scores and learning curves do,\n"
            "with the test's name, the size of the effect and its interval."
        ),
    )
    parser.add_argument("first", type=Path, metavar="DIR_A", help="folder of a run or sweep")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="folder of another")
    _add_help(parser)
    return parser


def _list_parser() -> argparse.ArgumentParser:
    parser = _parser(
        prog="jaxrl list", description="Lists algorithms, or the environments of all suites that are installed."
    )
    parser.add_argument("what", choices=("algorithms", "envs"), help="what to list")
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="only the environments of this suite")
    _add_help(parser)
    return parser


def _add_help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")


class _Spec(NamedTuple):
    summary: str
    module: str
    function: str
    parser: Callable[[], argparse.ArgumentParser]


COMMANDS: dict[str, _Spec] = {
    "train": _Spec("train an algorithm in an environment, several seeds at once", "train", "train", _train_parser),
    "sweep": _Spec("train a grid or sample of settings in few programs", "sweep", "sweep", _sweep_parser),
    "resume": _Spec("continue a run or a sweep, or make a run longer", "train", "resume", _resume_parser),
    "meta-train": _Spec("evolve a learned objective", "meta", "meta_train", _meta_train_parser),
    "meta-test": _Spec("compare rules with written ones on other tasks", "rule_table", "meta_test", _meta_test_parser),
    "evaluate": _Spec("play episodes with a trained run", "evaluate", "evaluate", _evaluate_parser),
    "plot": _Spec("draw the learning curves of one or several runs", "plot", "plot", _plot_parser),
    "report": _Spec("make a page of a sweep or of several", "report", "write", _report_parser),
    "compare": _Spec("say whether two runs or sweeps differ, and in what", "report", "compare", _compare_parser),
    "list": _Spec("list algorithms or environments", "lists", "list_names", _list_parser),
}


def _overview() -> str:
    lines = [
        f"jaxrl {__version__}: functional reinforcement-learning research in JAX",
        "",
        "usage: jaxrl COMMAND ...",
        "",
        "commands:",
        *(f"  {name:<10} {spec.summary}" for name, spec in COMMANDS.items()),
        "",
        "start with:",
        "  jaxrl train ppo gymnax/CartPole-v1",
        "",
        "`jaxrl COMMAND --help` explains a command, `jaxrl train ALGORITHM --help` every setting of an",
        "algorithm. JAXRL_DEBUG=1 shows tracebacks; JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs.",
    ]
    return "\n".join(lines)


def _nearest_option(parser: argparse.ArgumentParser, text: str) -> str | None:
    options: list[Any] = [option for action in parser._actions for option in action.option_strings]
    return next(iter(difflib.get_close_matches(text.partition("=")[0], options, n=1)), None)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()
