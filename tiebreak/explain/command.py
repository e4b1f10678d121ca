"""Explains a reward model's score of an answer, or what a policy has learned to prefer in it.

    tiebreak explain runs/quickstart/reward --prompt "Why are my leaves pale?" --answer "Add iron." --html
    tiebreak explain runs/quickstart/dpo --prompt … --answer … --pairs

For a reward model, a word's effect is the score minus that of the answer without it; for a policy, a token's effect is its
log-probability minus that under the policy from which training started. `--pairs` estimates how each training pair moved
the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import load_config
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.explain.configuration import ExplainArguments
from tiebreak.explain.page import Explanation, Influence, build_page, lines_of
from tiebreak.explain.pairs import training_pairs
from tiebreak.explain.words import Part, leave_one_out
from tiebreak.files import write_text_atomically
from tiebreak.messages import Message, assistant
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import while_importing
from tiebreak.records import Preference
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.run import read_manifest
from tiebreak.terminal import has_colours, show

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat

Losses = Sequence[Callable[[], Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak explain`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["explain", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        raise ConfigError("explain takes one run before its flags: tiebreak explain RUN --prompt TEXT --answer TEXT")
    run, given = words[0], load_config(ExplainArguments, words[1:], "explain")
    if not given.prompt.strip() or not given.answer.strip():
        raise ConfigError("--prompt and --answer need text")
    explain = explain_score if _made_by(run) == "reward" else explain_policy
    if explain is explain_score and given.against is not None:
        raise ConfigError("--against: of a policy; a reward model's scores are not comparable with another's")
    if explain is explain_policy and given.pairs:
        require_sigmoid(run)
    with redirect_stdout(sys.stderr):  # libraries print to it, and a program may read the JSON
        with while_importing():
            import tiebreak.library  # noqa: F401 - torch
        explanation = explain(run, given)
    if given.as_json:
        show(json.dumps(explanation.document(), indent=2, ensure_ascii=False))
    else:
        show(*lines_of(explanation, has_colours(sys.stdout)))
    if given.html:
        path = Path(given.output)
        write_text_atomically(path, build_page(explanation))
        if not given.as_json:
            show("", f"page: {path.resolve().as_uri()}")


def _made_by(run: str) -> str:
    """The stage of a run.

    Raises:
        ConfigError: the run made no model.
    """
    manifest = read_manifest(run)
    kind = (manifest.get("model") or {}).get("kind")
    if kind not in ("reward", "policy"):
        raise ConfigError(f"{run} is a run of '{manifest['stage']}', which makes no model: give a reward or policy run")
    return str(kind)


# --- a reward model ---


def explain_score(run: str, given: ExplainArguments) -> Explanation:
    """The effect of each word on a reward model's score."""
    from tiebreak.library import load_reward_model, score

    judge = load_reward_model(run, precision=given.precision, trust_remote_code=given.trust_remote_code)

    def score_all(answers: Sequence[str]) -> list[float]:
        return score(judge, [given.prompt] * len(answers), answers, batch_size=given.batch_size)

    value, parts = leave_one_out(given.answer, score_all)
    pairs = _pairs_of_score(run, given, judge.chat) if given.pairs else ()
    return Explanation(
        run=run,
        prompt=given.prompt,
        measure="score",
        value=value,
        unit="score",
        parts=tuple(parts),
        meaning="A word's effect is the score minus that of the answer without it. Effects do not add up to the score.",
        pairs=pairs,
    )


def _pairs_of_score(run: str, given: ExplainArguments, chat: Chat) -> tuple[Influence, ...]:
    from tiebreak.explain import influence
    from tiebreak.library import load_reward_model

    model = load_reward_model(run, precision=given.precision, trust_remote_code=given.trust_remote_code).model
    pairs, rows = training_pairs(run, chat)
    sketch = influence.Sketch(influence.lora_parameters(model))
    target = influence.score_of(model, _example(chat, given), chat.pad_id)
    losses = [lambda pair=pair: influence.reward_loss(model, pair, chat.pad_id) for pair in rows]
    return _strongest(pairs, _values(target, losses, sketch), given.shown)


# --- a policy ---


def explain_policy(run: str, given: ExplainArguments) -> Explanation:
    """Each token's log-probability under a policy minus that under another."""
    from tiebreak.library import load_policy
    from tiebreak.packed.logprobs import completion_logps_in_batches

    against = given.against or _began_from(run)
    loading = {"precision": given.precision, "trust_remote_code": given.trust_remote_code}
    policy = load_policy(run, **loading)  # type: ignore[arg-type]
    other = load_policy(against, **loading)  # type: ignore[arg-type]
    example = _example(policy.chat, given)
    if _example(other.chat, given) != example:
        raise HandoffError(
            f"{run} and {against} read this conversation as different tokens: their tokenizers or chat templates differ"
        )
    own, before = (completion_logps_in_batches(one.model, [example], one.chat.pad_id, 1)[0] for one in (policy, other))
    effects = [mine - theirs for mine, theirs in zip(own, before, strict=True)]
    tokens = policy.chat.tokenizer.convert_ids_to_tokens(example[1])
    texts = [policy.chat.tokenizer.convert_tokens_to_string([token]) or token for token in tokens]
    pairs = _pairs_of_policy(run, given, policy.chat, against) if given.pairs else ()
    return Explanation(
        run=run,
        prompt=given.prompt,
        measure="log-ratio",
        value=sum(effects),
        unit="nats",
        parts=tuple(Part(text, effect) for text, effect in zip(texts, effects, strict=True)),
        meaning="A token's effect is its log-probability under this policy minus that under the other. They add up.",
        against=against,
        pairs=pairs,
    )


def _began_from(run: str) -> str:
    """The policy from which a policy's training started.

    Raises:
        ConfigError: it is not recorded, or not found.
    """
    manifest = read_manifest(run)
    recorded = manifest["inputs"].get("policy")
    if recorded is None:
        raise ConfigError(f"{run} was not trained from a policy: name one with --against")
    if recorded["kind"] == "name":
        return str(recorded["source"])
    place = InputFinder().find(run, manifest, recorded).place
    if place is None:
        raise ConfigError(f"{recorded['source']}, which {run} was trained from, is not found: name it with --against")
    return str(place)


def require_sigmoid(run: str) -> None:
    """Refuse `--pairs` of a policy that was trained with another loss than the one whose gradients are computed.

    Raises:
        HandoffError: it was.
    """
    manifest = read_manifest(run)
    config = manifest["config"]
    losses = (
        config.get("loss_type", ["sigmoid"]) in ("sigmoid", ["sigmoid"]) and config.get("algorithm", "dpo") == "dpo"
    )
    if manifest["stage"] != "dpo" or not losses:
        raise HandoffError(f"--pairs: {run} was not trained with DPO's sigmoid loss, whose gradients are computed here")


def _pairs_of_policy(run: str, given: ExplainArguments, chat: Chat, against: str) -> tuple[Influence, ...]:
    from tiebreak.config import TrainingConfig
    from tiebreak.explain import influence
    from tiebreak.library import load_policy
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_policy as load_trainable
    from tiebreak.packed.logprobs import completion_logps_in_batches

    config = read_manifest(run)["config"]
    pairs, rows = training_pairs(run, chat)
    loading = {"precision": given.precision, "trust_remote_code": given.trust_remote_code}
    reference = load_policy(against, **loading).model  # type: ignore[arg-type]
    examples = [side for pair in rows for side in (pair.chosen, pair.rejected)]
    logps = [sum(one) for one in completion_logps_in_batches(reference, examples, chat.pad_id, given.batch_size)]
    source = find_model(run, trust_remote_code=given.trust_remote_code)
    model = load_trainable(source, TrainingConfig(**loading), None, chat.tokenizer).eval()  # type: ignore[arg-type]
    sketch = influence.Sketch(influence.lora_parameters(model))
    target = influence.logp_of(model, _example(chat, given), chat.pad_id)
    beta = float(config["beta"])
    losses = [
        lambda pair=pair, n=n: influence.dpo_loss(model, pair, (logps[2 * n], logps[2 * n + 1]), beta, chat.pad_id)
        for n, pair in enumerate(rows)
    ]
    return _strongest(pairs, _values(target, losses, sketch), given.shown)


# --- training pairs ---


def _values(target: Any, losses: Losses, sketch: Any) -> list[float]:
    from tiebreak.explain.influence import influences
    from tiebreak.terminal.progress import progress

    with progress(len(losses), "gradients of pairs") as bar:
        return influences(target, losses, sketch, lambda: bar.advance(1))


def _example(chat: Chat, given: ExplainArguments) -> tuple[list[int], list[int]]:
    written = chat.encode_side([Message(role="user", content=given.prompt)], assistant(given.answer))
    return written.prompt, written.completion


def _strongest(pairs: Sequence[Preference], values: Sequence[float], count: int) -> tuple[Influence, ...]:
    from tiebreak.explain.influence import strongest

    return tuple(
        Influence(
            influence=values[n],
            row=n + 1,
            pair_id=pairs[n].pair_id or "",
            raters=pairs[n].raters,
            prompt=pairs[n].prompt[-1].text,
            chosen=pairs[n].chosen_text,
            rejected=pairs[n].rejected_text,
        )
        for n in strongest(values, count)
    )


if __name__ == "__main__":
    main()
