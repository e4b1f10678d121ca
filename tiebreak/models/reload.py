"""Loads a saved model in a separate process that shares nothing with its training, and repeats its probe.

    python -m tiebreak.models.reload runs/quickstart/sft/final

Every training stage asks this process before it finishes, and after that for its reports: sample completions, scores of
adversarial answers, a merged copy. A request is one line of JSON on standard input, an answer one line on standard
output; without input, it repeats the probe and prints the largest difference.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tiebreak.config import LoadingConfig, SamplingConfig
from tiebreak.data.conversations import to_messages
from tiebreak.errors import HandoffError
from tiebreak.files import write_json
from tiebreak.process.ending import exit_with_message
from tiebreak.process.preloaded import Answer, PreforkedProcess, answered, may_fork
from tiebreak.process.settings import while_importing

if TYPE_CHECKING:
    from peft import PeftModel

    from tiebreak.chat.chat import Chat

SCORE_BATCH = 16
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_OF_A_LAUNCH_TOO = ("ACCELERATE_", "TORCHELASTIC_", "OMP_NUM")
"""environment variables of one of several processes, and a common prefix of others"""


_AHEAD: list[PreforkedProcess] = []
"""the process reserved for this one's next `FreshProcess`: at most one, used once"""


def fork_ahead() -> None:
    """Fork the process of the next `FreshProcess`, if this one can fork: before anything is loaded."""
    with while_importing():
        import peft  # noqa: F401 - so that it need not be imported there

    _AHEAD[:] = [PreforkedProcess(ReloadedModel().answer)] if may_fork() else []


class FreshProcess:
    """A process that shares nothing with this one and loads a saved model."""

    def __init__(self, final: Path, trust_remote_code: bool = False) -> None:
        self._about = {"final": str(final), "trust_remote_code": trust_remote_code}
        self._ahead = _AHEAD.pop() if _AHEAD else None
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ahead is not None:
            self._ahead.close()
        _end(self._process)
        self._errors.close()

    def verify(self, sequences: Sequence[list[int]] = ()) -> tuple[float, list[list[float]]]:
        """The saved model's difference from its probe, and a reward model's scores of `sequences` by each member.

        Raises:
            HandoffError: the saved model cannot be loaded there, or differs: by more than 1e-5 in float32.
        """
        import torch

        try:
            reply = self.ask("verify", threads=torch.get_num_threads())
            return float(reply["difference"]), self.scores(sequences) if sequences else []
        except RuntimeError as error:
            raise HandoffError(
                f"{self._about['final']} was saved, but a fresh process cannot use it: {error}. The checkpoints are kept: "
                "the same command resumes from the last one"
            ) from None

    def scores(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """A reward model's scores by each member."""
        return list(self.ask("score", sequences=list(sequences))["scores"])

    def samples(self, prompts: Sequence[Any], sampling: dict[str, Any]) -> list[str]:
        """A policy's answer to each prompt, a list of messages."""
        return list(self.ask("sample", prompts=list(prompts), sampling=sampling)["samples"])

    def merge(self, folder: Path) -> None:
        """Write the base weights with the adapter merged, as a plain model. The last request."""
        self.ask("merge", folder=str(folder))

    def ask(self, what: str, **request: Any) -> Answer:
        """One answer.

        Raises:
            RuntimeError: there is none; the message says why.
        """
        request |= {**self._about, "do": what}
        if self._ahead is not None and self._ahead.is_alive:
            return self._ahead.ask(request)
        if self._process is None or self._process.poll() is not None:
            _end(self._process)
            self._process = _start(Path(str(self._about["final"])), self._errors)
        return _ask(self._process, request, self._errors)


def _start(final: Path, errors: IO[str]) -> subprocess.Popen[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_LAUNCH and not name.startswith(_OF_A_LAUNCH_TOO)
    }
    command = [sys.executable, "-m", "tiebreak.models.reload", str(final), "--requests"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True)


def _end(process: subprocess.Popen[str] | None) -> None:
    if process is not None:
        with suppress(OSError, ValueError):  # it may have ended, or been ended here
            process.communicate()


def _ask(process: subprocess.Popen[str], request: dict[str, Any], errors: IO[str]) -> Answer:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    if not line:
        _end(process)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["it printed nothing"])[-1]
        raise RuntimeError(f"its process ended with status {process.returncode}: {last}")
    answer: Answer = json.loads(line)
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return dict(answer["done"])


class ReloadedModel:
    """The answering process: a saved model, loaded at the first request as its consumers load it."""

    def __init__(self) -> None:
        self._final = Path()
        self._loaded: tuple[Any, Any] | None = None

    def answer(self, request: dict[str, Any]) -> Answer:
        """The answer to one request of `FreshProcess`."""
        model, chat = self._load(Path(request["final"]), request["trust_remote_code"])
        if request["do"] == "verify":
            return {"difference": _verify(model, self._final, request.get("threads"))}
        if request["do"] == "sample":
            sampling = SamplingConfig.model_validate(request["sampling"])
            return {"samples": sample(model, chat, request["prompts"], sampling)}
        if request["do"] == "score":
            from tiebreak.packed.logprobs import member_scores_in_batches

            pad_id = chat.pad_id
            return {"scores": member_scores_in_batches(model, request["sequences"], pad_id, SCORE_BATCH)}
        self._loaded = None  # it is another model now
        _merge(model, chat, self._final, Path(request["folder"]))
        return {}

    def _load(self, final: Path, trust_remote_code: bool) -> tuple[Any, Any]:
        if self._loaded is None or final != self._final:
            with while_importing():
                from tiebreak.models.find import MODEL_FILE
                from tiebreak.models.probe import PROBE_FILE

            pinned = json.loads((final / MODEL_FILE).read_text())
            dtype = json.loads((final / PROBE_FILE).read_text())["dtype"]
            model, chat = load_saved(final, pinned, dtype, trust_remote_code)
            self._final, self._loaded = final, (model.eval(), chat)
        return self._loaded


def _verify(model: PeftModel, final: Path, threads: int | None) -> float:
    import torch

    from tiebreak.models.find import MODEL_FILE
    from tiebreak.models.probe import PROBE_FILE, PROBE_TOLERANCE, verify_probe

    quantized = json.loads((final / MODEL_FILE).read_text())["quantized"]
    exact = json.loads((final / PROBE_FILE).read_text())["dtype"] == "float32" and not quantized
    before = torch.get_num_threads()
    # another number of threads adds in another order: 2e-5 for a real model
    torch.set_num_threads(threads or before)
    difference = verify_probe(model, final, PROBE_TOLERANCE if exact else None)
    torch.set_num_threads(before)
    return difference


def _merge(model: PeftModel, chat: Chat, final: Path, folder: Path) -> None:
    from tiebreak.models.find import CHAT_FILE, copy_code
    from tiebreak.models.probe import verify_probe
    from tiebreak.models.save import pinned_chat

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    whole: Any = model.merge_and_unload()
    verify_probe(whole, final)
    whole.config.use_cache = True
    whole.generation_config.eos_token_id = list(chat.stop_ids)
    try:
        whole.save_pretrained(temporary)
        chat.tokenizer.save_pretrained(temporary)
        if stated := pinned_chat(chat.settings):
            write_json(temporary / CHAT_FILE, stated["chat"])
        copy_code(final, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_saved(
    final: Path, pinned: dict[str, Any], dtype: str, trust_remote_code: bool = False
) -> tuple[PeftModel, Chat]:
    """A saved model as plain PEFT loads it, with its tokenizer.

    Args:
        pinned: content of its `MODEL_FILE`.
        dtype: the format in which its probe was computed.
    """
    with while_importing():
        import torch
        from peft import PeftModel

        from tiebreak.models.adapters.adapter import unrounded
        from tiebreak.models.adapters.virtual_tokens import attach
        from tiebreak.models.find import ModelSource, find_base, find_base_of_run, format_of
        from tiebreak.models.load import load_base
        from tiebreak.models.tokenizers import load_chat
        from tiebreak.runs.run import RUN_FILE, read_run_file

    is_whole, run = "weights_sha256" in pinned, final.parent
    base, base_path = str(final), final
    if not is_whole and (run / RUN_FILE).is_file():
        base, base_path = find_base_of_run(run, read_run_file(run), pinned["base"], trust_remote_code)
    elif not is_whole:
        base, base_path = pinned["base"], find_base(pinned["base"], trust_remote_code)
    source = ModelSource(
        str(final),
        pinned["kind"],
        "",
        base,
        base_path,
        pinned["base_sha256"],
        None if is_whole else final,
        trust_remote_code,
        pinned=pinned,
    )
    training = LoadingConfig.model_validate({"precision": dtype, "trust_remote_code": trust_remote_code})
    chat = load_chat(source)
    model = load_base(source, training, kind=pinned["kind"], weights=format_of(source, None))
    model.config.pad_token_id = chat.pad_id
    whole: Any = model if is_whole else attach(unrounded(PeftModel.from_pretrained(model, final), final))
    return whole.to("cuda") if torch.cuda.is_available() else whole, chat


def sample(model: PeftModel, chat: Chat, prompts: Sequence[Any], sampling: SamplingConfig) -> list[str]:
    """The policy's answer to each prompt (its messages and tools); deterministic."""
    from tiebreak.packed.generation import row_seed, sample_completions

    drawn = sample_completions(
        model,
        [chat.encode_prompt(to_messages(one["messages"]), tuple(one["tools"])) for one in prompts],
        [row_seed("samples", number) for number in range(len(prompts))],
        sampling,
        stop_ids=chat.stop_ids,
        textless_ids=chat.textless_ids,
        pad_id=chat.pad_id,
        batch_size=len(prompts),
    )
    return [chat.decode_completion(one.ids) for one in drawn]


def serve() -> None:
    """Answer requests line by line. Nothing else goes to standard output."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    reloaded = ReloadedModel()
    for line in sys.stdin:
        print(json.dumps(answered(reloaded.answer, json.loads(line))), file=replies, flush=True)


def main(words: Sequence[str]) -> None:
    """`python -m tiebreak.models.reload FINAL [--trust-remote-code]`"""
    final = Path(words[0])
    if "--requests" in words:
        serve()
        return
    about = {"final": str(final), "trust_remote_code": "--trust-remote-code" in words, "do": "verify"}
    print(json.dumps(ReloadedModel().answer(about)))


if __name__ == "__main__":
    exit_with_message(lambda: main(sys.argv[1:]))
