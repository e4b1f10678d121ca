"""A finished run's probe again, and its table of samples: what a stage reports at its end, without training.

    tiebreak sample --probe runs/quickstart/dpo

loads the saved model in a fresh process, compares it with `final/probe.json`, and draws `samples.jsonl` again, for a run
whose samples failed, or on another machine or other versions. `tiebreak reward report` does it for a reward model's report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tiebreak.command.help import print_help, wants_help
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.files import write_jsonl
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import leave_out_inference_kernel, quiet_upstream, settle_process
from tiebreak.process.stopping import heeding_signals
from tiebreak.runs.reports import SAMPLES, note_done, read_reports
from tiebreak.runs.run import read_manifest
from tiebreak.terminal import say


def probe(folder: Path) -> None:
    """Repeat a finished run's probe, and draw its samples again if it has some.

    Raises:
        RunError: there is no such finished run.
        HandoffError: it holds no trained model; or its outputs are not those of its training.
    """
    from tiebreak.models.probe import PROBE_FILE
    from tiebreak.models.reload import FreshProcess

    manifest = read_manifest(folder)
    if not (folder / "final" / PROBE_FILE).is_file():
        raise HandoffError(f"{folder} has no final/{PROBE_FILE}: give the folder of a finished training run")
    trust = bool(manifest["config"].get("training", {}).get("trust_remote_code"))
    with FreshProcess(folder / "final", trust) as process:
        difference, _ = process.verify()
        say(f"{folder}: loaded in a fresh process, the largest difference from its training is {difference:.1e}")
        drawn = read_reports(folder).get(SAMPLES)
        if drawn is None:
            return
        asked = [prompt["messages"][-1]["content"] for prompt in drawn.request["prompts"]]
        answers = process.samples(drawn.request["prompts"], drawn.request["sampling"])
    rows = [{"prompt": one, "completion": answer} for one, answer in zip(asked, answers, strict=True)]
    write_jsonl(folder / f"{SAMPLES}.jsonl", rows)
    note_done(folder, SAMPLES)
    say(f"saved: {folder / f'{SAMPLES}.jsonl'} ({len(rows)} samples)")


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak sample probe RUN`, or `tiebreak sample --probe RUN`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if wants_help(words):
        exit_with_message(lambda: print_help(["sample", "probe", *words]))
        return
    settle_process()
    quiet_upstream()
    leave_out_inference_kernel()

    def run() -> None:
        if len(words) != 1 or words[0].startswith("-"):
            raise ConfigError("--probe takes one finished run: tiebreak sample --probe runs/quickstart/sft")
        probe(Path(words[0]))

    with heeding_signals():
        exit_with_message(run)


if __name__ == "__main__":
    main()
