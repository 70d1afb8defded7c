"""What the commands of objective discovery take."""

import argparse
from pathlib import Path

from jaxrl.cli.options import (
    add_env_option,
    add_help,
    add_layout,
    add_time_limit,
    count,
    count_or_zero,
    counts,
    life,
    new_parser,
    positive,
    probability,
)

KINDS = ("lpo", "ta_lpo", "lpg", "ta_lpg", "open", "program")


def meta_train_parser() -> argparse.ArgumentParser:
    """Of `jaxrl meta-train`."""
    parser = new_parser(
        prog="jaxrl meta-train",
        usage="jaxrl meta-train KIND (--env ENV | --tasks ENV) [name=value ...] [options]",
        description=(
            "Evolves a learned objective, optimizer or loss by the returns of the agents that it teaches.\n"
            "The folder gets rule.npz, the one that did best on held-out learners so far, which `jaxrl train`\n"
            "(--objective, --optimizer or --head) and `jaxrl meta-test` take. `jaxrl resume DIR` goes on."
        ),
        epilog=(
            "kinds:\n"
            "  lpo      a drift of ratio and advantage for ppo (Lu et al. 2022)\n"
            "  ta_lpo   one that changes with progress (Jackson et al. 2024)\n"
            "  lpg      a rule over rollouts for discrete actions (Oh et al. 2020)\n"
            "  ta_lpg   one that sees progress and the length of life (Jackson et al. 2024)\n"
            "  open     an optimizer for ppo (Goldie et al. 2024)\n"
            "  program  a loss for dqn as an expression graph (Co-Reyes et al. 2021), by regularized evolution;\n"
            "           the best of the last population are in population-1.npz and so on\n\n"
            "name=value and config.name=value are the inner agent's, as for `jaxrl train ppo`, `jaxrl train lpg`\n"
            "and `jaxrl train dqn`. Where states are numbered, lpg's agents are tables (config.tabular=true\n"
            "config.optimizer=sgd learning_rate=40 prediction_learning_rate=4) unless you say otherwise."
        ),
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="see below")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--env", metavar="ENV", help="suite/Name, in which all learners learn")
    where.add_argument(
        "--tasks", metavar="ENV", help="one with levels (grids/*, chains/*), of which each pair of candidates draws one"
    )
    parser.add_argument("--generations", type=count, default=200, metavar="N", help="of the search (default 200)")
    parser.add_argument(
        "--held-out-every",
        type=count,
        metavar="N",
        help="generations between looks, of which --generations is a multiple (default 10, or all if there are fewer; "
        "program always 1)",
    )
    parser.add_argument(
        "--held-out", type=count, metavar="N", help="learners of each look (default 16; with --tasks 64; program 4)"
    )
    parser.add_argument(
        "--population",
        type=count,
        metavar="P",
        help="candidates, even (default 32; with --tasks 64); of program those that may have children (default 100)",
    )
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
    evolution = parser.add_argument_group("all kinds but program")
    evolution.add_argument("--sigma", type=positive, metavar="X", help="of perturbations (default 0.1; open 0.3)")
    evolution.add_argument("--meta-rate", type=positive, metavar="X", help="of Adam's steps (default 0.01; open 0.1)")
    evolution.add_argument("--decay", type=positive, metavar="X", help="of both a generation (default 1)")
    evolution.add_argument(
        "--shaping",
        choices=("centered_rank", "pairwise", "z_score", "raw"),
        help="of fitness (default centered_rank; lpg and ta_lpg pairwise)",
    )
    search = parser.add_argument_group("program")
    search.add_argument("--children", type=count, metavar="N", help="programs trained in a generation (default 8)")
    search.add_argument(
        "--tournament", type=count, metavar="N", help="members of which the best has a child (default 10)"
    )
    search.add_argument(
        "--mutation", type=probability, metavar="X", help="share of children that are mutants (default 0.95)"
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
        help="where the search begins: zero or ppo (lpo, ta_lpo), random or a2c (lpg, ta_lpg: by imitation), zero "
        "(open), or the file of a rule of this kind; random or td, DQN's loss (program). Default: the first",
    )
    parser.add_argument(
        "--rule-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="size of the rule: hidden=64; for lpg also num_bins=8, embedding=16, core=gru; for open memory=16; for "
        "program num_nodes=12 only; may be repeated",
    )
    parser.add_argument(
        "--seed", type=count_or_zero, default=0, metavar="N", help="from which all randomness follows (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default runs/meta-train-KIND-ENV-TIME)"
    )
    parser.add_argument("--plan", action="store_true", help="say what would be run, and stop")
    add_time_limit(parser)
    add_layout(parser)
    add_env_option(parser)
    add_help(parser)
    return parser


def meta_test_parser() -> argparse.ArgumentParser:
    """Of `jaxrl meta-test`."""
    parser = new_parser(
        prog="jaxrl meta-test",
        usage="jaxrl meta-test RULE [RULE ...] --envs ENV[,...] [name=value ...] [options]",
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
    parser.add_argument(
        "rules",
        type=Path,
        nargs="+",
        metavar="RULE",
        help="files of rules of one family: those of meta-train, OPEN's vectors (FILE.npy), or disco_103.npz",
    )
    parser.add_argument("--envs", required=True, metavar="ENV[,...]", help="suite/Name of each, with commas between")
    parser.add_argument(
        "--baselines",
        metavar="NAME[,...]",
        help="random, and for lpo and ta_lpo ppo, a2c, dpo and the other written objectives, for lpg and ta_lpg a2c "
        "and ppo (default ppo,a2c,random); for open and disco ppo (default ppo,random); for program dqn, dqn_reg and "
        "dqn_clipped (default dqn,dqn_reg,random)",
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
    add_layout(parser)
    add_help(parser)
    return parser
