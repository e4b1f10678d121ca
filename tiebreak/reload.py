"""Load a saved model in a process that shares nothing with the one that trained it, and repeat its probe.

    python -m tiebreak.reload runs/quickstart/sft/final [REQUEST.json]

Every training stage runs this before it finishes. Prints one JSON line: the largest difference, and a sample for each
prompt of the request. On request the adapter is also merged into the weights and saved as a plain model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.config import SamplingConfig, TrainingConfig
from tiebreak.errors import HandoffError, exit_with_message
from tiebreak.forks import Ahead, may_fork
from tiebreak.launch import while_importing
from tiebreak.records import to_messages

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

SCORE_BATCH = 16
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_OF_A_LAUNCH_TOO = ("ACCELERATE_", "TORCHELASTIC_", "OMP_NUM")
"""environment of one of several processes, and how the rest of it begins"""


_AHEAD: list[Ahead] = []
"""the process that waits for this one's next `in_fresh_process`: one or none, and asked once"""


def fork_ahead() -> None:
    """Fork the process of the next `in_fresh_process`, where this one can be: before anything is loaded."""
    with while_importing():
        import peft  # noqa: F401 - so that it need not be imported there

        import tiebreak.generation
        import tiebreak.models  # noqa: F401
    _AHEAD[:] = [Ahead(lambda asked: reload(Path(asked["final"]), asked["request"]))] if may_fork() else []


def in_fresh_process(final: Path, request: dict[str, Any]) -> dict[str, Any]:
    """`reload` in a process that shares nothing with this one.

    Raises:
        HandoffError: what was saved cannot be loaded there, or answers differently.
    """
    import torch

    request = request | {"threads": torch.get_num_threads()}
    try:
        if _AHEAD:
            return _AHEAD.pop().ask({"final": str(final), "request": request})
        return _in_new_process(final, request)
    except RuntimeError as error:
        raise HandoffError(f"{final} was saved, but a fresh process cannot use it: {error}") from None


def _in_new_process(final: Path, request: dict[str, Any]) -> dict[str, Any]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_LAUNCH and not name.startswith(_OF_A_LAUNCH_TOO)
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as asked:
        json.dump(request, asked)
        asked.flush()
        command = [sys.executable, "-m", "tiebreak.reload", str(final), asked.name]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    answer: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer


def reload(final: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a consumer of `final` would see: {"difference": float, "samples": [text, …], "scores": [[float of
    each member], …]}.

    Raises:
        HandoffError: the model does not answer as it did before it was saved: to 1e-5 in float32.
    """
    with while_importing():
        import torch

        from tiebreak.logprobs import member_scores_in_batches
        from tiebreak.models import MODEL_FILE, PROBE_FILE, PROBE_TOLERANCE, verify_probe

    pinned = json.loads((final / MODEL_FILE).read_text())
    dtype = json.loads((final / PROBE_FILE).read_text())["dtype"]
    model, tokenizer = load_saved(final, pinned, dtype)
    exact = dtype == "float32" and not pinned["quantized"]
    threads = torch.get_num_threads()
    # another number of threads adds up in another order: 2e-5 of a real model
    torch.set_num_threads(request.get("threads", threads))
    difference = verify_probe(model, final, PROBE_TOLERANCE if exact else None)
    torch.set_num_threads(threads)
    model.eval()
    samples: list[str] = []
    if pinned["kind"] == "policy" and request.get("prompts"):
        samples = sample(model, tokenizer, request["prompts"], SamplingConfig.model_validate(request["sampling"]))
    scores: list[list[float]] = []
    if pinned["kind"] == "reward" and request.get("sequences"):
        scores = member_scores_in_batches(model, request["sequences"], tokenizer.pad_token_id, SCORE_BATCH)
    if request.get("merged"):
        whole = model.merge_and_unload()
        whole.config.use_cache = True
        whole.save_pretrained(request["merged"])
        tokenizer.save_pretrained(request["merged"])
    return {"difference": difference, "samples": samples, "scores": scores}


def load_saved(final: Path, pinned: dict[str, Any], dtype: str) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A saved model as plain PEFT loads it, with its tokenizer.

    Args:
        pinned: what stands in its `MODEL_FILE`.
        dtype: the number format that its probe was taken in.
    """
    with while_importing():
        import torch
        from peft import PeftModel

        from tiebreak.models import ModelSource, find_base, load_base, load_tokenizer

    base = find_base(pinned["base"])
    source = ModelSource(str(final), pinned["kind"], "", pinned["base"], base, pinned["base_sha256"], final)
    training = TrainingConfig.model_validate({"precision": dtype})
    tokenizer = load_tokenizer(source)
    model = load_base(source, training, kind=pinned["kind"], quantized=pinned["quantized"])
    model.config.pad_token_id = tokenizer.pad_token_id
    whole = PeftModel.from_pretrained(model, final)
    return whole.to("cuda") if torch.cuda.is_available() else whole, tokenizer


def sample(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Any], sampling: SamplingConfig
) -> list[str]:
    """The policy's answer to each prompt, a list of messages; the same every time."""
    from tiebreak.chat import decode_completion, encode_prompt
    from tiebreak.generation import row_seed, sample_completions

    drawn = sample_completions(
        model,
        [encode_prompt(tokenizer, to_messages(messages)) for messages in prompts],
        [row_seed("samples", number) for number in range(len(prompts))],
        sampling,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        batch_size=len(prompts),
    )
    return [decode_completion(tokenizer, one.ids) for one in drawn]


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else {}
    exit_with_message(lambda: print(json.dumps(reload(Path(sys.argv[1]), asked))))
