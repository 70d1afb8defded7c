"""Settings of all tests: ranks never broadcast silently, and programs are dropped once there are too many."""

import gc
from pathlib import Path

import jax
import pytest

# These train for a while, or hold of programs as users compile them.
AS_USERS = (
    "learning/test_tasks",
    "runs/",
    "test_diagnosing.py::test_the_training_stays",
    "test_diagnostics.py::test_churn_of_several_actions",
    "test_diagnostics.py::test_training_is_the_same_bit_for_bit",
)
# Slow ones, each of which took 4 to 45 s of a core, while others of the ordinary tests hold of the same code.
LATE = (
    "analysis/test_comparison.py::test_under_the_null_hypothesis_five_percent_are_rejected[mean-5-3]",
    "analysis/test_report.py::test_many_drawn_settings_stay_small",
    "contract/test_laws.py::test_law_6_every_option_matters[ppo-continuous",
    "contract/test_laws.py::test_variants_learn_something_with_their_own_defaults[rainbow]",
    "contract/test_laws.py::test_variants_learn_something_with_their_own_defaults[vmpo]",
    "envs/test_coverage.py::test_subpo_covers_and_the_modular_reward_does_not",
    "envs/test_locks.py::test_only_the_whole_code_pays[Continuous]",
    "envs/test_suites.py::test_step_is_brax_own[inverted_pendulum-spring]",
    "learning/test_columnar.py::test_control_with_memory",
    "learning/test_columnar.py::test_memory_is_learned",
    "learning/test_columnar.py::test_memory_is_linear_in_the_columns_and_thousands_learn_together",
    "learning/test_heads.py::test_head_learns[mixture]",
    "learning/test_hnpg.py::test_members_with_datasets_of_their_own_are_as_alone",
    "learning/test_hnpg.py::test_the_dataset_is_bootstrapped",
    "learning/test_hnpg.py::test_the_rollout_is_regressed_on_what_was_paid",
    "learning/test_hnpg.py::test_the_dataset_moves_the_policy_where_the_rollout_pays_nothing",
    "learning/test_hnpg.py::test_without_a_dataset_it_learns_from_its_rollouts",
    "learning/test_mrq.py::test_images_go_through_the_convolutions",
    "learning/test_probes.py::test_policy[ActionMask]",
    "learning/test_probes.py::test_policy[Memory]",
    "learning/test_props.py::test_the_sampling_error_is_below_on_policy_sampling",
    "learning/test_props.py::test_truncation",
    "learning/test_recursive_gradients.py::test_the_direction_follows_the_gradient[64-0.0-0.05]",
    "learning/test_reppo.py::test_critic",
    "learning/test_reppo.py::test_policy",
    "learning/test_reppo.py::test_prices_follow_their_constraints",
    "learning/test_streaming.py::test_cartpole",
    "learning/test_streaming.py::test_policy[ac]",
    "learning/test_streaming.py::test_policy[avg]",
    "learning/test_variants.py::test_a_broken_version_fails_the_probe[vmpo]",
    "meta/test_distributed.py",
    "meta/test_pbt.py::test_four_devices_give_what_one_gives",
    "meta/test_population.py::test_every_layout_gives_the_same_members",
    "networks/test_actor_critic.py::test_one_environment_is_a_batch_of_one[s5]",
    "networks/test_actor_critic.py::test_steps_make_a_rollout[s5]",
    "networks/test_policies.py::test_weight_norm_of_an_actor_critic[gru]",
    "runs/test_fit.py::test_killed_from_outside_and_resumed_is_the_same_run[population]",
    "runs/test_fit.py::test_killed_inside_writes_and_resumed_is_the_same_run[population]",
    "scripts/test_bench.py::test_algorithms_have_a_row_for_one_member_and_for_many",
    "scripts/test_bench.py::test_resets_have_a_row_for_each_mode",
    "sweeps/test_execution.py::test_a_batch_that_does_not_fit_is_halved_until_it_does",
    "sweeps/test_execution.py::test_killed_and_continued_is_as_if_never_killed",
    "sweeps/test_execution.py::test_layout_and_batches_do_not_change_the_results",
    "sweeps/test_execution.py::test_members_of_ppo_with_swept_environment_and_objective",
    "sweeps/test_execution.py::test_the_command_sweeps_in_shares_at_the_same_time_and_resumes",
    "sweeps/test_halving.py::test_batches_and_chunks_change_nothing",
    "sweeps/test_halving.py::test_four_devices_give_what_one_gives",
    "sweeps/test_halving.py::test_lanes_are_freed",
    "test_datasets.py::test_members_share_a_dataset",
    "test_diagnostics.py::test_a_population_measures_what_its_members_do",
    "test_diagnostics.py::test_training_is_the_same_bit_for_bit[ppo-probe/Memory-network2]",
    *(f"test_notebooks.py::test_runs_with_small_settings[{name}" for name in ("2_", "3_", "4_", "5_")),
    *(
        f"test_readme.py::test_python_blocks_run[{page}.md]"
        for page in ("diagnostics", "discovery", "off-policy", "on-policy", "reppo", "search", "streaming", "sweeps")
    ),
)
TESTS = Path(__file__).parent
_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def pytest_collection_modifyitems(items):
    """Marks what is slow by its time alone, and what `scripts/test` compiles without optimization.

    Slow tests, and those of `AS_USERS`, compile as users do.
    """
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if name.startswith(LATE):
            item.add_marker(pytest.mark.slow)
        elif not name.startswith(AS_USERS) and "slow" not in item.keywords:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """Compiled programs are dropped once there are many: they hold memory maps, of which Linux gives 65,530.

    Beyond them a worker dies of a segmentation fault somewhere in the compiler.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()
