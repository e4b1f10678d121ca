"""A signal ends a run with what it has done kept, and status 75; the same command continues to the uncut run's weights."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, end_process, run_here, succeed, write_config, write_rows
from transformers import Trainer

from tiebreak.packed.generation import SampledCompletion
from tiebreak.process import stopping
from tiebreak.runs.run import read_manifest, read_metrics


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "final").glob("*.safetensors")}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics less what time decides. A row's loss is the mean since the row before, which a stop forgets."""
    left_out = ("second", "runtime", "num_tokens", "step_time", "loss", "grad_norm", "num_input")
    return [{k: v for k, v in row.items() if not any(word in k for word in left_out)} for row in read_metrics(folder)]


def send_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, number: int) -> None:
    """Send this process a signal within the call with that number of a method or function."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


TO_THE_END = ("--training.lr_scheduler", "constant_with_warmup")
"""the learning rate is not 0 at the end, where one more step would show"""
PPO = (
    *TO_THE_END,
    "--rollouts",
    "2",
    "--ppo_epochs",
    "2",
    "--training.save_steps",
    "100",
    "--training.learning_rate",
    "1e-3",
)
GROUPS = (*PPO, "--completions_per_prompt", "2")
ROUGH = (*TO_THE_END, "--training.save_steps", "100", "--training.gradient_accumulation_steps", "2")
CASES = {
    # (stage, options, the step after which the signal comes, where the run stops)
    "sft": ("sft", (*ROUGH, "--merge", "false"), "training_step", 3, signal.SIGTERM, 2),
    "reward": ("reward", (), "training_step", 1, signal.SIGUSR1, 1),
    "dpo between evaluations": (
        "dpo",
        (*TO_THE_END, "--training.eval_steps", "2", "--training.save_steps", "2"),
        "evaluate",
        1,
        signal.SIGHUP,
        2,
    ),
    "ppo within a rollout": ("ppo", PPO, "training_step", 3, signal.SIGTERM, 3),
    "rloo within a rollout": ("ppo", (*GROUPS, "--algorithm", "rloo"), "training_step", 6, signal.SIGTERM, 6),
    "grpo within a rollout": ("ppo", (*GROUPS, "--algorithm", "grpo"), "training_step", 3, signal.SIGINT, 3),
}


UncutRun = Callable[[str, tuple[str, ...]], Path]


def words_of(finished_recipe: Path, stage: str, options: tuple[str, ...]) -> tuple[str | Path, ...]:
    """A stage's command, less its output."""
    config = finished_recipe / "runs" / stage / "config.resolved.yaml"
    return (stage, "--config", config, *options, "--tracking.mode", "disabled", "--output")


@pytest.fixture(scope="module")
def uncut_run(finished_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> UncutRun:
    """The folder of a run with these options that nothing interrupted."""
    made = {(stage, ()): finished_recipe / "runs" / stage for stage in ("reward", "dpo")}

    def run(stage: str, options: tuple[str, ...]) -> Path:
        if (stage, options) not in made:
            folder = tmp_path_factory.mktemp(stage) / "uncut"
            status, message = run_here(*words_of(finished_recipe, stage, options), folder)
            assert status == 0, message
            made[stage, options] = folder
        return made[stage, options]

    return run


LIKE_GRPO = pytest.param("rloo within a rollout", marks=pytest.mark.proof)
"""the same loop"""


@pytest.mark.parametrize("case", [*(name for name in CASES if not name.startswith("rloo")), LIKE_GRPO])
def test_a_signal_keeps_the_step_and_the_run_ends_as_an_uncut_one_and_no_later(
    finished_recipe: Path, uncut_run: UncutRun, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, options, where, call, number, step = CASES[case]
    words, cut = words_of(finished_recipe, stage, options), tmp_path / "cut"
    uncut = uncut_run(stage, options)
    with monkeypatch.context() as patched:
        send_at(patched, Trainer, where, call, number)
        status, message = run_here(*words, cut)
    assert status == (130 if number == signal.SIGINT else 75), message
    assert f"step {step} of " in message
    assert ("interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}") in message
    assert [one.name for one in (cut / "checkpoints").iterdir()] == [f"checkpoint-{step}"]
    end_process(cut)
    status, message = run_here(*words, cut)
    assert status == 0, message
    assert f"resuming from {cut / 'checkpoints' / f'checkpoint-{step}'}" in message
    assert weights_of(cut) == weights_of(uncut)
    assert rows_of(cut) == rows_of(uncut)
    assert read_manifest(cut)["id"] == read_manifest(uncut)["id"]
    assert read_manifest(cut).get("counts") == read_manifest(uncut).get("counts")
    end_after_the_last_step(cut, words)
    assert weights_of(cut) == weights_of(uncut)
    assert rows_of(cut) == rows_of(uncut)


def end_after_the_last_step(folder: Path, words: tuple[Any, ...]) -> None:
    """Cut a finished run off in its final evaluation or reload, and give its command again: no step is added."""
    checkpoints = sorted(one.name for one in (folder / "checkpoints").iterdir())
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "final")
    status, message = run_here(*words, folder)
    assert status == 0, message
    assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == checkpoints


def test_a_signal_while_a_rollout_is_drawn_keeps_the_last_one(
    finished_recipe: Path, uncut_run: UncutRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weight has changed since its border: the checkpoint of that is written, without waiting for the samples."""
    from preference.policy import rollout

    words = words_of(finished_recipe, "ppo", PPO)
    drawn: list[list[SampledCompletion]] = []
    original = rollout.sample_completions

    def slow_in_the_second(*args: Any, **kwargs: Any) -> list[SampledCompletion]:
        if drawn:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it was not cut short")
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    with monkeypatch.context() as patched:
        patched.setattr(rollout, "sample_completions", slow_in_the_second)
        status, message = run_here(*words, tmp_path / "cut")
    assert status == 75, message
    assert [one.name for one in (tmp_path / "cut" / "checkpoints").iterdir()] == ["checkpoint-4"]
    end_process(tmp_path / "cut")
    assert run_here(*words, tmp_path / "cut")[0] == 0
    assert weights_of(tmp_path / "cut") == weights_of(uncut_run("ppo", PPO))


def test_a_step_that_takes_too_long_is_cut_short(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is of the step before, as nothing of this one has reached the weights."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.2)
    words = ("dpo", "--config", finished_recipe / "runs" / "dpo" / "config.resolved.yaml", "--output", tmp_path / "cut")
    words += ("--training.save_steps", "100")
    original, steps = Trainer.training_step, []

    def slow(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                time.sleep(0.05)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", slow)
        status, message = run_here(*words)
    assert (status, steps) == (75, [0, 1]), message
    assert [one.name for one in (tmp_path / "cut" / "checkpoints").iterdir()] == ["checkpoint-1"]
    end_process(tmp_path / "cut")
    assert run_here(*words)[0] == 0
    assert weights_of(tmp_path / "cut") == weights_of(finished_recipe / "runs" / "dpo")


def test_sampling_ends_with_its_batch(finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import preference.sample

    words = ("sample", "--config", finished_recipe / "runs" / "sample" / "config.resolved.yaml")
    words += ("--output", tmp_path / "cut", "--tracking.mode", "disabled", "--batch_size", "4")
    uncut = ("--output", tmp_path / "uncut")
    assert run_here(*words, *uncut)[0] == 0
    with monkeypatch.context() as patched:
        send_at(patched, preference.sample, "sample_completions", 2, signal.SIGTERM)
        status, message = run_here(*words)
    assert status == 75, message
    assert "2 batches of sampling 1 of 1 are kept" in message
    assert len(list((tmp_path / "cut" / "partial").rglob("*.json"))) == 2
    end_process(tmp_path / "cut")
    assert run_here(*words)[0] == 0
    pairs = [(tmp_path / name / "final" / "pairs.jsonl").read_bytes() for name in ("cut", "uncut")]
    assert pairs[0] == pairs[1]


def test_a_second_ctrl_c_does_not_wait_and_one_press_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    with stopping.heeding_signals(), stopping.deferring():
        for _ in range(2):  # from the terminal, and passed on by the recipe
            os.kill(os.getpid(), signal.SIGINT)
        assert stopping.requested() == signal.SIGINT
        clock[0] += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stopping.requested() == 0


def test_signals_while_the_model_is_verified_finished_and_reported_on(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained again, and each time the same command goes one step further."""
    from tiebreak.models.reload import FreshProcess
    from tiebreak.runs.run import Run

    words = (*words_of(finished_recipe, "dpo", ()), tmp_path / "cut")
    places: list[tuple[Any, str, int, bool]] = [
        (FreshProcess, "verify", signal.SIGTERM, False),
        (Run, "finish", signal.SIGUSR1, False),
        (FreshProcess, "samples", signal.SIGHUP, True),
    ]
    for owner, name, number, finished in places:
        with monkeypatch.context() as patched:
            send_at(patched, owner, name, 1, number)
            status, message = run_here(*words)
        assert status == 75, message
        assert f"stopped by {signal.Signals(number).name}: the same command resumes" in message
        assert (tmp_path / "cut" / "manifest.json").exists() is finished
        end_process(tmp_path / "cut")
    status, message = run_here(*words)
    assert status == 0, message
    assert "making what it lacks: samples" in message
    assert weights_of(tmp_path / "cut") == weights_of(finished_recipe / "runs" / "dpo")
    assert rows_of(tmp_path / "cut") == rows_of(finished_recipe / "runs" / "dpo")
    assert read_manifest(tmp_path / "cut")["id"] == read_manifest(finished_recipe / "runs" / "dpo")["id"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_second_signal_changes_nothing_about_a_stop(second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the first one's exception leaves the work, and once more while its message is printed."""
    from tiebreak.process import ending

    clock, printed = [100.0], []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])

    def send_again() -> None:
        clock[0] += 5
        os.kill(os.getpid(), second)

    def complain(message: str) -> None:
        printed.append(message)
        send_again()

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            send_again()
            printed.append("cleaned up")

    monkeypatch.setattr(ending, "complain", complain)
    with pytest.raises(SystemExit) as ended, stopping.heeding_signals():
        ending.exit_with_message(work, resumes=True)
    assert (ended.value.code, printed) == (75, ["cleaned up", "\nstopped by SIGTERM: the same command resumes"])


ENDS_SLOWLY = """
import atexit, os, signal, sys, time
from tiebreak.process.ending import exit_with_message
from tiebreak.process.stopping import heeding_signals

def slowly():
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.kill(os.getpid(), number)
    print("taken down", flush=True)

atexit.register(slowly)
with heeding_signals():
    exit_with_message(lambda: os.kill(os.getpid(), signal.SIGUSR1))
"""


def test_signals_while_the_interpreter_is_taken_down_leave_the_exit_status() -> None:
    result = subprocess.run([sys.executable, "-c", ENDS_SLOWLY], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (75, "taken down\n"), result.stderr


OF_A_TERMINAL = """
import signal, sys, time
from tiebreak.process.ending import exit_with_message
from tiebreak.process.stopping import check, deferring, heeding_signals, requested

def work():
    with deferring():
        print("at work", flush=True)
        while not requested():
            time.sleep(0.01)
        print("a step", "of a bar", file=sys.stderr, flush=True)  # to the terminal that is gone
        open(sys.argv[1], "w").write("saved")
        check("its step is saved")

with heeding_signals():
    exit_with_message(work)
"""


def test_a_closed_terminal_stops_a_run_as_other_signals_do(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-c", OF_A_TERMINAL, str(tmp_path / "step")],
            {**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    assert b"at work" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    assert (tmp_path / "step").read_text() == "saved"


def test_signals_are_heeded_nowhere_else() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with pytest.raises(stopping.Stopped), stopping.heeding_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with others
    with stopping.heeding_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, ignored)


# --- processes that start others -------------------------------------------------------------------------------------


def processes_below(pid: int) -> set[int]:
    import psutil

    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def ended(pids: set[int], seconds: float) -> bool:
    """Whether all of them end in time. One that is a zombie has ended."""
    import psutil

    def runs(pid: int) -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(runs, pids))


def long_recipe(finished_recipe: Path, folder: Path, accelerate: str | None) -> Path:
    """A recipe of one SFT that would take far longer than the test, with W&B off."""
    entry: dict[str, Any] = {"stage": "sft", "config": finished_recipe / "runs" / "sft" / "config.resolved.yaml"}
    entry["overrides"] = {
        "output": str(folder / "sft"),
        "merge": False,
        "training": {"max_steps": 100_000, "save_steps": 50_000, "eval_steps": None},
    }
    if accelerate:
        entry["accelerate"] = accelerate
    return write_config(folder / "recipe.yaml", name="long", from_root=folder, tracking_mode="disabled", stages=[entry])


def start_and_wait_for_steps(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tiebreak.command.cli", "run", "--config", str(recipe)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not read_metrics(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    return process


@pytest.mark.parametrize("accelerate", [None, pytest.param("cpu_zero2", marks=pytest.mark.proof)])
def test_a_recipe_passes_signals_on_and_takes_its_workers_with_it(
    finished_recipe: Path, tmp_path: Path, accelerate: str | None
) -> None:
    """SIGUSR1 first, under a launcher to each process, as Slurm sends it: a checkpoint, status 75 and nothing left. The
    same command continues; then SIGKILL: nothing left."""
    recipe = long_recipe(finished_recipe, tmp_path, accelerate)
    process = start_and_wait_for_steps(recipe, tmp_path / "sft")
    below = processes_below(process.pid)
    assert len(below) >= (4 if accelerate else 1)  # the stage; or its starter, the launcher and two workers
    for pid in (*(below if accelerate else ()), process.pid):
        os.kill(pid, signal.SIGUSR1)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 75, message[-3000:]
    assert "stopped by SIGUSR1" in message
    assert "Traceback" not in message
    assert ended(below, 10)
    (checkpoint,) = (tmp_path / "sft" / "checkpoints").iterdir()
    assert (checkpoint / "COMPLETE").is_file()
    kept = int(checkpoint.name.rpartition("-")[2])
    assert [row["step"] for row in read_metrics(tmp_path / "sft")][-1] == kept

    process = start_and_wait_for_steps(recipe, tmp_path / "sft")
    while read_metrics(tmp_path / "sft")[-1]["step"] <= kept:
        time.sleep(0.1)
    below = processes_below(process.pid)
    process.kill()
    process.communicate()
    assert ended(below, 40)
    steps = [row["step"] for row in read_metrics(tmp_path / "sft")]
    assert steps == list(range(1, len(steps) + 1))  # none twice, none left out


@pytest.mark.proof
def test_ppo_on_two_processes_stops_and_goes_on_to_the_same_weights(finished_recipe: Path, tmp_path: Path) -> None:
    """Under ZeRO-2 the trainer loads a checkpoint another way: the scores' scale and the rollout's rest come along."""
    config = finished_recipe / "runs" / "ppo" / "config.resolved.yaml"
    words = [
        "ppo",
        "--config",
        config,
        *PPO,
        "--rollouts",
        8,
        "--accelerate",
        "cpu_zero2",
        "--tracking.mode",
        "disabled",
    ]
    succeed(*words, "--output", tmp_path / "uncut")
    command = [sys.executable, "-m", "tiebreak.command.cli", *map(str, words), "--output", str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    while not read_metrics(tmp_path / "cut") and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 75, message[-3000:]
    assert "Traceback" not in message
    assert len(list((tmp_path / "cut" / "checkpoints").glob("*/COMPLETE"))) == 1
    succeed(*words, "--output", tmp_path / "cut")
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "uncut")


def test_stages_of_one_process_refuse_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "content": "Why?"}]}])
    config = write_config(tmp_path / "prepare.yaml", output=tmp_path / "s", prompts=[data])
    status, message = run_here("prepare", "--config", config)
    assert status == 2
    assert "'tiebreak prepare' runs in one process: start it without accelerate or torchrun" in message
    shutil.rmtree(tmp_path / "s", ignore_errors=True)


def test_tests_in_a_shells_background_heed_ctrl_c(pytestconfig: pytest.Config) -> None:
    """There Ctrl-C is ignored from the start, by what a test starts too."""
    [ours] = [
        plugin
        for plugin in pytestconfig.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == str(REPOSITORY / "tests" / "conftest.py")
    ]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ours.heed_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
