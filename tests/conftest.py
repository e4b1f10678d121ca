"""Fixtures that tests share: a two-layer random model with the real tokenizer, its finished recipe, small raw data."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from prepared import prepared_processes
from recipe import run_recipe
from support import build_tiny_model, write_rows

SLOW = """
    test_stages test_passes test_label_lead test_signals test_pipeline test_benchmark test_splits test_ppo_trainer
    test_label_browser
    test_algorithms test_kto test_limit test_gpu_benchmark test_judge
    test_finish test_endings test_closed_form test_tracking test_label_conversations test_adapters test_spread
    test_disk test_label_accounts test_label_export test_custom_code test_models test_dpo_labels test_recipes test_vllm
    test_finite test_forks test_bad_input test_compare test_model_folders test_command test_keys_are_read
    test_reward_stage test_init_runs test_wheel test_thinking test_extras test_guard_stage test_export test_gguf test_server
    test_label_on_screen test_new_judge_kind
    test_label_hostile test_rounds test_adapter_start test_methods test_label_saying test_label_standing test_label_backup
    test_label_single test_label_page test_shared_batches test_label_second_factor test_label_review test_label_synthetic
    test_synthesise test_virtual_tokens test_trackers test_canaries test_padded_vocabulary
    test_new_stage test_monitors test_evaluate_yardsticks test_yardsticks test_benchmarks test_explain
    test_label_api test_label_security test_bad_training test_plan test_evaluate test_label_documents test_reference_check
    test_label_campaign test_label_mail test_label_campaigns test_guard test_label_measuring test_scaled_logits
    test_any_rows test_label_quality test_inspect test_overview test_paths test_groups test_pairwise test_label_finding
    test_sample test_served_completions
""".split()
"""Files of more than five seconds, the longest first: each file is one worker's, so at the end none must be left alone with
a long one. The first three share no fixture, so no worker begins by waiting for another. `make test-fast` leaves them out,
as tests elsewhere that are marked slow or need a finished recipe, which takes a minute to make."""


class _FailuresAtOnce:
    """Prints each failure as it happens: a suite that is stopped before its end has then said what it found."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.when} of {report.nodeid} failed:\n{report.longreprtext[-2000:]}")


def pytest_configure(config: pytest.Config) -> None:
    """In every worker; failures are printed by the process that has the terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(_FailuresAtOnce(terminal))
    heed_ctrl_c()


def heed_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so would the stages that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proofs", action="store_true", help="also what `make proofs` runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--proofs"):
        proofs = [item for item in items if item.get_closest_marker("proof")]
        config.hook.pytest_deselected(items=proofs)
        items[:] = [item for item in items if item not in proofs]
    for item in items:
        if item.path.stem in SLOW or "finished_recipe" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    others = sorted({item.path.stem for item in items if item.get_closest_marker("slow")} - set(SLOW))
    places = {name: place for place, name in enumerate(in_turn([*SLOW, *others]))}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def in_turn(names: list[str]) -> list[str]:
    """The slow files in their order; where some may be skipped, from another one each day, so that none always is."""
    until = os.environ.get("SLOW_TESTS_UNTIL")
    begin = int(float(until)) // 86_400 * 37 % len(names) if until else 0
    return names[begin:] + names[:begin]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`.ci/run` sets SLOW_TESTS_UNTIL, in seconds since 1970: a suite that is killed at a limit says less than one that
    ends and names what it did not begin."""
    until = os.environ.get("SLOW_TESTS_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip("not begun: this machine has taken too long for the tests before it; `make test` runs all")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What `make` makes in a folder, for all workers: the first to ask makes it, the others wait. Copy it to change it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> Iterator[None]:
    """Stages that a test runs in its own process; see prepared.py."""
    with prepared_processes():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer model."""
    return made_once(tmp_path_factory, "tiny", build_tiny_model)


@pytest.fixture(scope="session")
def finished_recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of a recipe that was run to its end without a break; see recipe.py."""
    return made_once(tmp_path_factory, "recipe", lambda folder: run_recipe(folder, tiny_model))


@pytest.fixture(scope="session")
def raw_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small raw data in TRL's formats: prompts, demonstrations and preferences."""
    folder = tmp_path_factory.mktemp("data")
    crops = [
        "basil",
        "lettuce",
        "mint",
        "tomato",
        "pepper",
        "kale",
        "chard",
        "cress",
        "dill",
        "rocket",
        "thyme",
        "sage",
    ]
    ask = ["Why are my {} leaves pale?", "How often should I feed {} in summer?"]
    prompts = [q.format(c) for c in crops for q in ask]
    write_rows(folder / "prompts.jsonl", [{"prompt": [{"role": "user", "content": p}]} for p in prompts])
    write_rows(
        folder / "demonstrations.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": f"What does {c} need at night?"}],
                "completion": [
                    {"role": "assistant", "content": f"Keep the {c} at {n + 15} degrees and dark for 8 hours."}
                ],
            }
            for n, c in enumerate(crops)
        ],
    )
    write_rows(
        folder / "preferences.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": p}],
                "chosen": [{"role": "assistant", "content": f"Add {n + 1} ml of feed per litre today."}],
                "rejected": [{"role": "assistant", "content": "It depends on many things." + " Really." * (n % 3)}],
                "strength": 1 + n % 3,
                "split": "validation" if n % 6 == 0 else "train",
            }
            for n, p in enumerate(prompts)
        ],
    )
    return folder
