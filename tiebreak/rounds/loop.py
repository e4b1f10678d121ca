"""Rounds: sample from the newest policy, select pairs, have them judged, train, evaluate; again, until a rule stops
them.

    tiebreak rounds --config configs/rounds/quickstart.yaml

Every stage of every round is a run folder below ROOT/round-N, made by the recipe runner: what is up to date is skipped,
what was interrupted is resumed, and where people label, the command stops and continues when it is given again.
`ROOT/rounds.json` and `rounds.html` show win rate, score and KL against the labels bought.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.command.help import print_help, wants_help
from tiebreak.command.pipeline import PipelineConfig, check_entry, group_in, run_stage, stage_words
from tiebreak.config import load_config, read_yaml
from tiebreak.errors import ConfigError, counted
from tiebreak.files import write_json, write_text_atomically
from tiebreak.process.ending import exit_with_message
from tiebreak.process.limit import limited_to
from tiebreak.process.settings import quiet_upstream
from tiebreak.process.stopping import heeding_signals
from tiebreak.rounds.configuration import RoundsConfig
from tiebreak.rounds.joining import Judged, join_config, join_labels, share_pairs
from tiebreak.rounds.page import build_page
from tiebreak.rounds.results import held_out_accuracy, read_evaluation, read_guard, read_label
from tiebreak.rounds.rivals import COMPLETIONS, rivals_of, write_pool
from tiebreak.rounds.stopping import Round, why_distrust, why_stop, why_undecided
from tiebreak.terminal import rule, say, tick
from tiebreak.terminal.bars import duration

BY_SCORES = ("disagreement", "margin", "largest_gap")
"""strategies that read the reward model of the round before; the first round selects at random"""
SEEDS_APART = 1_000
"""difference between the sampling seeds of two cycles"""
AT_RANDOM: dict[str, Any] = {
    "strategy": "random", "reward_model": None, "diverse": False, "candidates": 3.0, "random_share": 0.2, "policy": None
}  # fmt: skip


@dataclass
class State:
    """The state of the rounds."""

    policy: str
    """the newest policy"""
    before: str | None = None
    """the policy before it"""
    reward_model: str | None = None
    labels: list[str] = field(default_factory=list)
    """the label runs so far"""
    judged: list[Judged] = field(default_factory=list)
    figures: list[Round] = field(default_factory=list)

    @property
    def bought(self) -> int:
        """Judgments bought so far."""
        return sum(one["labels"] for one in self.figures)


class PeopleLabelError(Exception):
    """The rounds wait for people."""


def run_rounds(config: RoundsConfig) -> None:
    """All rounds.

    Raises:
        RunError: a stage failed, or its folder holds another run.
    """
    with limited_to(config.max_time):
        try:
            _run_rounds(config)
        except PeopleLabelError:
            return


def _run_rounds(config: RoundsConfig) -> None:
    for entry in config.stages:
        check_entry(entry)
    check_strategy(config)
    if own_keys(config, "evaluate").get("split") == "train":
        raise ConfigError(
            "evaluate: split: train measures the policies on the prompts that rounds train on, and rounds would stop by "
            "that: set split: test or validation"
        )
    if pairs_within_budget(config, 0) < 1:
        overlap = own_keys(config, "label")["overlap"]
        raise ConfigError(
            f"budget: {config.budget}, but a pair takes {overlap} judgments (overlap of label): not one pair can be judged"
        )
    root, state, started = Path(config.root), State(config.policy), time.monotonic()
    group = group_in(root, config.name)
    why = ""
    for number in range(1, config.rounds + 1):
        pairs = pairs_within_budget(config, state.bought)
        if pairs < 1:
            why = f"the budget of {counted(config.budget, 'judgment')} is used up"
            break
        why = run_round(config, number, state, pairs, group)
        write_report(config, state, why)
        if why:
            break
    why = why or f"all {counted(config.rounds, 'round')} done"
    write_report(config, state, why)
    tick(why, duration(time.monotonic() - started))
    say(
        f"{counted(state.bought, 'judgment')} bought in {counted(len(state.figures), 'round')}; the newest policy is "
        f"{state.policy}",
        f"report: {(root / 'rounds.html').resolve().as_uri()}",
    )


@dataclass(frozen=True)
class RoundRunner:
    """Runs the stages of one round."""

    config: RoundsConfig
    number: int
    group: str

    @property
    def folder(self) -> Path:
        """The round's folder."""
        return Path(self.config.root) / f"round-{self.number}"

    def path(self, name: str) -> str:
        """A stage's folder."""
        return str(self.folder / name)

    def run(self, stage: str, name: str = "", **keys: Any) -> str:
        """Run a stage; returns its folder, which has the stage's name or another."""
        output = self.path(name or stage)
        _run(self.config, self.number, stage, {"output": output, **keys}, self.group)
        return output


def run_round(config: RoundsConfig, number: int, state: State, pairs: int, group: str) -> str:
    """Run one round; returns why no other follows, or an empty string."""
    runner, previous = RoundRunner(config, number, group), state.policy
    pool = make_pool(runner, state)
    judge = runner.run("judge", pairs=pool) if config.has("judge") else None
    select = runner.run("select", **select_keys(config, state, pool, judge, pairs))
    label = runner.run("label", pairs=select)
    figures: Round = {"round": number, **read_label(Path(label), Path(select), state.labels)}
    if distrust := why_undecided(figures) or why_distrust(figures["agreement"], config.stop):
        state.figures.append({**figures, "trained": False})
        return (
            f"round {number} is not trained on: {distrust}. See 'tiebreak label agreement', and revise the guidelines; "
            f"once its pairs have better judgments, move {label} away and give this command again"
        )
    state.labels.append(label)
    if judge is not None and config.judges_label == "rest":
        state.judged.append(Judged(judge=judge, pool=pool, selected=select))
    preferences = join(config, runner.folder, state)
    if config.has("reward"):
        state.reward_model = runner.run("reward", policy=config.policy, preferences=preferences)
    other = train(runner, state, preferences)
    state.before = previous
    policies = {"start": config.policy, "previous": previous, "current": state.policy, "other": other}
    if previous == config.policy:
        del policies["previous"]
    given = {name: policy for name, policy in policies.items() if policy is not None}
    evaluate = runner.run("evaluate", policies=given, baseline="start", reward_model=state.reward_model)
    figures |= read_evaluation(Path(evaluate)) | read_guard(Path(state.policy))
    figures["reward_accuracy"] = held_out_accuracy(Path(runner.path("reward"))) if config.has("reward") else None
    state.figures.append({**figures, "trained": True, "policy": state.policy})
    return why_stop(state.figures, config.stop)


def make_pool(runner: RoundRunner, state: State) -> str:
    """Sample from the newest policy and its rivals; returns the run folder of the pairs."""
    config = runner.config
    sample = runner.run("sample", policy=state.policy, round=runner.number)
    rivals = rivals_of(config.against, state.policy, state.before, config.policy)
    if not rivals:
        return sample
    keys: dict[str, Any] = {"round": runner.number, "completions_per_prompt": COMPLETIONS}
    settings = own_keys(config, "sample").get("sampling")
    if isinstance(settings, list):
        keys["sampling"] = settings[:COMPLETIONS]
    of_rivals = [runner.run("sample", f"sample-{name}", policy=policy, **keys) for name, policy in rivals.items()]
    return write_pool(runner.folder / "pool", [sample, *of_rivals], config.replace)


def train(runner: RoundRunner, state: State, preferences: str) -> str | None:
    """Train the round's policy. If starts are compared, also train from the other start; returns that run's folder."""
    config = runner.config
    learns_from = {"preferences": preferences} if config.trainer == "dpo" else {"reward_model": state.reward_model}
    starts = {"current": state.policy, "start": config.policy}
    begun = starts.pop(config.start_from)
    [(name, elsewhere)] = starts.items()
    state.policy = runner.run(config.trainer, policy=begun, **learns_from)
    for cycle in range(1, config.judge_cycles + 1):
        state.policy = train_on_judge(runner, state.policy, cycle)
    if not config.compare_starts or elsewhere == begun:
        return None
    return runner.run(config.trainer, f"{config.trainer}-from-{name}", policy=elsewhere, **learns_from)


def train_on_judge(runner: RoundRunner, policy: str, cycle: int) -> str:
    """A semi-online cycle: pairs of the policy as it is now, a judge's verdicts, and training on them."""
    config = runner.config
    seed = config.seed if config.seed is not None else int(own_keys(config, "sample").get("seed", 0))
    sample = runner.run(
        "sample", f"cycle-{cycle}-sample", policy=policy, round=runner.number, seed=seed + SEEDS_APART * cycle
    )
    judge = runner.run("judge", f"cycle-{cycle}-judge", pairs=sample)
    judged = [Judged(judge=judge, pool=sample)]
    preferences = join_labels(join_config(runner.folder / f"cycle-{cycle}-labels", [], judged), config.replace)
    return runner.run("dpo", f"cycle-{cycle}-dpo", policy=policy, preferences=preferences)


def join(config: RoundsConfig, folder: Path, state: State) -> str:
    """The run folder of the labels that a round trains on."""
    last = 1 if config.data == "round" else len(state.labels)
    labels, judged, earlier = state.labels[-last:], state.judged[-last:], state.labels[:-last]
    shared = share_pairs(state.labels)
    if len(labels) == 1 and not judged and not shared:
        return labels[0]
    joined = join_config(folder / "labels", labels, judged, apart=shared, earlier=earlier if shared else ())
    return join_labels(joined, config.replace)


def select_keys(config: RoundsConfig, state: State, pool: str, judge: str | None, pairs: int) -> dict[str, Any]:
    """The selection's keys that the round sets: the pool, earlier judgments, and the inputs of its strategy."""
    keys: dict[str, Any] = {"pairs": pool, "judged": list(state.labels), "selected_pairs": pairs}
    own = own_keys(config, "select")
    strategy = own.get("strategy", "random")
    if strategy in BY_SCORES and state.reward_model is None:
        return keys | {key: value for key, value in AT_RANDOM.items() if key in own or key == "strategy"}
    if strategy in BY_SCORES:
        keys["reward_model"] = state.reward_model
    if strategy == "judge_unsure":
        keys["judges"] = [judge]
    if own.get("diverse") or strategy == "diverse":
        keys["policy"] = state.policy
    return keys


def check_strategy(config: RoundsConfig) -> None:
    """Refuse a strategy whose inputs no stage makes.

    Raises:
        ConfigError: names the stage to add.
    """
    strategy = own_keys(config, "select").get("strategy", "random")
    if strategy in BY_SCORES and not config.has("reward"):
        raise ConfigError(
            f"select: strategy {strategy} reads a reward model, and no stage makes one, so that every round would select "
            "at random: add a stage reward to the rounds, or set strategy: random"
        )
    if strategy == "judge_unsure" and not config.has("judge"):
        raise ConfigError("select: strategy judge_unsure reads a judge's verdicts: add a stage judge to the rounds")


def own_keys(config: RoundsConfig, stage: str) -> dict[str, Any]:
    """The keys that a stage's file and its overrides state, before the round sets its own."""
    [entry] = [entry for entry in config.stages if entry.stage == stage]
    return {**read_yaml(Path(entry.config)), **entry.overrides}


def pairs_within_budget(config: RoundsConfig, bought: int) -> int:
    """The number of pairs that the next round may select: the file's, or fewer if the budget has fewer left."""
    wanted = int(own_keys(config, "select").get("selected_pairs", 0)) or config.budget
    overlap = int(own_keys(config, "label").get("overlap", 1))
    return min(wanted, (config.budget - bought) // overlap)


def _run(config: RoundsConfig, number: int, stage: str, keys: dict[str, Any], group: str) -> None:
    """Run one stage of a round."""
    [entry] = [entry for entry in config.stages if entry.stage == stage]
    entry = entry.model_copy(update={"overrides": {**entry.overrides, **keys}})
    pipeline = PipelineConfig(
        name=config.name,
        stages=[entry],
        seed=config.seed,
        replace=config.replace,
        tracking_mode=config.tracking_mode,
        report_to=config.report_to,
    )
    rule(f"round {number}: {stage}")
    if not run_stage(entry, stage_words(entry, pipeline), group, pipeline, "tiebreak rounds"):
        raise PeopleLabelError


def write_report(config: RoundsConfig, state: State, why: str) -> None:
    """rounds.json and rounds.html."""
    report = {
        "name": config.name,
        "start": config.policy,
        "budget": config.budget,
        "bought": state.bought,
        "stopped": why,
        "rounds": state.figures,
        **({"judge_cycles": config.judge_cycles} if config.judge_cycles else {}),
    }
    root = Path(config.root)
    write_json(root / "rounds.json", report)
    write_text_atomically(root / "rounds.html", build_page(report))


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak rounds`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if wants_help(words):
        exit_with_message(lambda: print_help(["rounds", *words]))
        return
    quiet_upstream()
    with heeding_signals():
        exit_with_message(lambda: run_rounds(load_config(RoundsConfig, words, "rounds")), resumes=True)


if __name__ == "__main__":
    main()
