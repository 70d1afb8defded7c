"""What the commands on runs and sweeps take."""

import argparse
from pathlib import Path

from jaxrl.cli.options import (
    add_common,
    add_env_option,
    add_help,
    add_rules,
    count,
    count_or_zero,
    new_parser,
    seconds,
    share,
)
from jaxrl.cli.summaries import algorithm_summaries


def train_parser() -> argparse.ArgumentParser:
    """Of `jaxrl train`."""
    summaries = algorithm_summaries()
    width = max(map(len, summaries))
    algorithms = "\n".join(f"  {name:<{width}} {summary}" for name, summary in summaries.items())
    parser = new_parser(
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
    add_env_option(parser)
    parser.add_argument(
        "--sink",
        action="append",
        default=[],
        choices=("tensorboard", "wandb"),
        help="where else the numbers go, besides log.jsonl; may be repeated. wandb is offline unless WANDB_MODE says "
        "otherwise, its project is WANDB_PROJECT or jaxrl",
    )
    parser.add_argument(
        "--diagnose",
        metavar="NAMES",
        help="further metrics of any algorithm, with commas between: churn, dormant, effective_rank",
    )
    add_rules(parser)
    add_common(parser)
    return parser


def sweep_parser() -> argparse.ArgumentParser:
    """Of `jaxrl sweep`."""
    parser = new_parser(
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
    add_env_option(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=seconds,
        default=60.0,
        metavar="S",
        help="how often the batch in progress is saved (default 60)",
    )
    add_rules(parser)
    add_help(parser)
    return parser


def resume_parser() -> argparse.ArgumentParser:
    """Of `jaxrl resume`."""
    parser = new_parser(
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
    add_common(parser)
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Of `jaxrl evaluate`."""
    parser = new_parser(
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
    add_help(parser)
    return parser


def plot_parser() -> argparse.ArgumentParser:
    """Of `jaxrl plot`."""
    parser = new_parser(
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
    add_help(parser)
    return parser


def report_parser() -> argparse.ArgumentParser:
    """Of `jaxrl report`."""
    parser = new_parser(
        prog="jaxrl report",
        description=(
            "Makes one page of a sweep, or of several sweeps and runs: the best settings and their uncertainty,\n"
            "learning curves, what matters, tables, configuration. Needs no network to be read."
        ),
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="folders of sweeps or runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="html or md (default DIR/report.html)")
    add_help(parser)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Of `jaxrl compare`."""
    parser = new_parser(
        prog="jaxrl compare",
        description=(
            "Says what differs between two runs or sweeps, and whether their scores and learning curves do,\n"
            "with the test's name, the size of the effect and its interval."
        ),
    )
    parser.add_argument("first", type=Path, metavar="DIR_A", help="folder of a run or sweep")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="folder of another")
    add_help(parser)
    return parser


def list_parser() -> argparse.ArgumentParser:
    """Of `jaxrl list`."""
    parser = new_parser(
        prog="jaxrl list", description="Lists algorithms, or the environments of all suites that are installed."
    )
    parser.add_argument("what", choices=("algorithms", "envs"), help="what to list")
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="only the environments of this suite")
    add_help(parser)
    return parser
