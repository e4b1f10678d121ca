"""Scores of completions: reward models and Python functions, each with a weight.

    reward_model: runs/quickstart/reward                     # weight 1
    rewards:
      - {function: my_rewards:is_polite, weight: 0.5}        # a function of an installed or local package
      - {model: runs/other/reward, weight: 0.3}

A reward model on the policy's own base weights is mounted on them as one more adapter; any other is loaded separately,
and one with another tokenizer reads the text. A function has the signature of TRL's reward functions, so those work too:
`function(prompts=…, completions=…)` with lists of messages returns a number for each completion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from preference.configuration import RewardConfig
from preference.policy.adapters import has_adapters
from preference.policy.layout import Layout, batches_by_tokens
from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import encode_each
from tiebreak.config import LoadingConfig
from tiebreak.errors import HandoffError
from tiebreak.measures import functions
from tiebreak.measures.functions import UserFunction
from tiebreak.measures.yardsticks.inputs import Function, YardstickInput
from tiebreak.measures.yardsticks.instructions import share_followed
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.peft_files import ADAPTER_FILE
from tiebreak.models.find import ModelSource, find_model, format_of
from tiebreak.models.load import load_trained_reward_model
from tiebreak.models.precision import format_held
from tiebreak.models.probe import PROBE_FILE, PROBE_TOLERANCE_ELSEWHERE
from tiebreak.models.scores import ScoreScale, combine_scores, read_score_scale
from tiebreak.models.tokenizers import chat_facts, load_chat
from tiebreak.packed.logprobs import member_scores_in_batches
from tiebreak.packed.parts import whole_model
from tiebreak.records import Prompt
from tiebreak.runs.run import Run

if TYPE_CHECKING:
    from peft import PeftModel

TOKENS_AT_ONCE = 1024
"""tokens per pass without gradients"""
ROWS_AT_ONCE = 16
"""tokens per padded pass"""
UNKNOWN_SCALE = ScoreScale()
FIX = "Fix it, and give another --output if there are checkpoints: they were trained with the old function"
"""A function's file is part of a run's identity, see tiebreak.runs.run.identify."""


class Reward(Protocol):
    """Something that scores completions."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def weight(self) -> float:
        """Its weight in the sum."""

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Sequence[float]:
        """A score for each completion."""


class LanguageModelHost(Protocol):
    """A policy that reward models can be mounted on."""

    lm: PeftModel

    def lay_out(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Layout:
        """Prompts and completions as the model takes them."""

    def hidden_states(self, layout: Layout) -> Tensor:
        """Flattened to (tokens, hidden), under the active adapter."""


@dataclass(frozen=True)
class MountedReward:
    """A reward model as an adapter of the policy's base weights, with a score head of one row per member."""

    name: str
    weight: float
    host: LanguageModelHost
    adapter: str
    head: nn.Linear
    scale: ScoreScale = UNKNOWN_SCALE
    spread_penalty: float = 0.0

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """The members' combined score."""
        return _combined(self.member_scores(prompts, completions), self.scale, self.spread_penalty)

    @torch.no_grad()
    def member_scores(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Each member's score, read at each sequence's last token."""
        sequences = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        results: list[list[float]] = [[] for _ in sequences]
        with Adapter(self.host.lm, self.adapter).merged():
            for rows in batches_by_tokens(sequences, TOKENS_AT_ONCE):
                layout = self.host.lay_out([prompts[row] for row in rows], [completions[row] for row in rows])
                last = torch.stack([places[-1] for places in layout.places])
                hidden = self.host.hidden_states(layout)[last]
                scored = self.head(hidden.to(self.head.weight.dtype)).float()
                for row, members in zip(rows, scored.tolist(), strict=True):
                    results[row] = members
        return results


@dataclass(frozen=True)
class SeparateReward:
    """A reward model on its own base weights."""

    name: str
    weight: float
    model: nn.Module
    pad_id: int
    read: Callable[[Sequence[int], Sequence[int]], Sequence[int]] = lambda prompt, completion: [*prompt, *completion]
    """its own token ids of a prompt and completion given in the policy's"""
    scale: ScoreScale = UNKNOWN_SCALE
    spread_penalty: float = 0.0

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """The members' combined scores, each read at a sequence's last token."""
        sequences = [self.read(p, c) for p, c in zip(prompts, completions, strict=True)]
        members = member_scores_in_batches(self.model, sequences, self.pad_id, ROWS_AT_ONCE)
        return _combined(members, self.scale, self.spread_penalty)


def _combined(members: Sequence[Sequence[float]], scale: ScoreScale, spread_penalty: float) -> list[float]:
    offsets = torch.tensor(scale.offsets, dtype=torch.float64)
    combined: list[float] = combine_scores(torch.tensor(members, dtype=torch.float64), spread_penalty, offsets).tolist()
    return combined


@dataclass(frozen=True)
class Conversations:
    """From token ids back to text."""

    chat: Chat
    prompts: Mapping[tuple[int, ...], Prompt]

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """The conversation with these ids."""
        return self.prompts[tuple(ids)]

    def text(self, ids: Sequence[int]) -> str:
        """A completion's text."""
        return self.chat.decode_completion(ids)


@dataclass(frozen=True)
class FunctionReward:
    """A Python function as a reward."""

    name: str
    weight: float
    function: Callable[..., Any]
    conversations: Conversations

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """Its returned scores, validated.

        Raises:
            HandoffError: it raises, or does not return a list with a number for each completion.
        """
        conversations = self.conversations
        try:
            returned = self.function(
                prompts=[[m.model_dump() for m in conversations.prompt(p).messages] for p in prompts],
                completions=[[{"role": "assistant", "content": conversations.text(c)}] for c in completions],
                completion_ids=[list(c) for c in completions],
            )
        except Exception as error:
            raise HandoffError(
                f"the reward function {self.name} raised {type(error).__name__}: {error} "
                f"({functions.where_raised(self.function, error)}). If the cause is outside it, the same command "
                f"resumes from the last checkpoint. {FIX}"
            ) from error
        return _numbers(returned, len(completions), self.name)


@dataclass(frozen=True)
class InstructionReward:
    """The share of its prompt's checkable instructions that a completion follows; 0 for a prompt without any."""

    name: str
    weight: float
    followed: Function
    conversations: Conversations

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """From 0 to 1."""
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            (share,) = self.followed(
                YardstickInput(self.conversations.prompt(prompt)), [self.conversations.text(completion)]
            )
            found.append(share or 0.0)
        return found


def _numbers(returned: Any, wanted: int, name: str) -> list[float]:
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise HandoffError(
            f"the reward function {name} returned {type(returned).__name__}: {str(error)[:80]}; it must return a list "
            f"with a number for each completion. {FIX}"
        ) from error
    if len(values) != wanted:
        raise HandoffError(
            f"the reward function {name} returned {len(values)} scores for {wanted} completions: it must return one for "
            f"each, in their order. {FIX}"
        )
    return values


def saved_scale(reward: Reward) -> tuple[float, float] | None:
    """Mean and deviation of a reward model's scores of the SFT policy's samples, if its run was given any (`samples`).

    None leaves it to the first rollout; so does a spread penalty, which the saved figures do not include.
    """
    if not isinstance(reward, MountedReward | SeparateReward) or reward.spread_penalty:
        return None
    mean, deviation = reward.scale.score_mean, reward.scale.score_std
    return (mean, deviation) if mean is not None and deviation else None


def score_all(
    rewards: Sequence[Reward], prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Every reward's score of every completion, shape (rewards, completions).

    Raises:
        HandoffError: a score is not a finite number.
    """
    rows = []
    for reward in rewards:
        scores = list(reward.scores(prompts, completions))
        broken = sum(not math.isfinite(score) for score in scores)
        if broken:
            raise HandoffError(
                f"{reward.name} gave {broken} of {len(scores)} completions a score that is not a finite number; nothing "
                "was learned from them. For a reward model: look at its run's metrics, and train it again at a lower "
                "learning rate; for a function: fix it, and give another --output. The checkpoints are kept"
            )
        rows.append(scores)
    return torch.tensor(rows, dtype=torch.float32)


# --- finding and mounting ---


def load_function(name: str, beside: Path | None = None) -> Callable[..., Any]:
    """The reward function `package.module:function`; see tiebreak.measures.functions.

    Args:
        beside: the folder of the configuration file.

    Raises:
        ConfigError: no such module or function, or one that takes other arguments.
    """
    return find_function(name, beside).call


def find_function(name: str, beside: Path | None = None) -> UserFunction:
    """A reward function with its source file, whose content is part of a run's identity."""
    function = functions.load_function(name, "rewards", beside)
    example = "function(prompts=…, completions=…, completion_ids=…)"
    functions.require_arguments(function, "rewards", example, prompts=[], completions=[], completion_ids=[])
    return function


def load_rewards(
    configs: Sequence[RewardConfig],
    host: LanguageModelHost,
    source: ModelSource,
    chat: Chat,
    prompts: Sequence[tuple[list[int], Prompt]],
    training: LoadingConfig,
    beside: Path | None = None,
) -> list[Reward]:
    """All rewards, mounted on the policy where the base weights are the same.

    Args:
        beside: the configuration file's folder, where functions are looked for.
    """
    conversations = Conversations(chat, {tuple(ids): prompt for ids, prompt in prompts})
    rewards: list[Reward] = []
    for number, config in enumerate(configs):
        if config.function is not None:
            function = load_function(config.function, beside)
            rewards.append(FunctionReward(config.function, config.weight, function, conversations))
        elif config.instructions is not None:
            followed = share_followed(config.instructions)
            rewards.append(InstructionReward(config.instructions, config.weight, followed, conversations))
        elif config.model is not None:
            found = find_model(config.model, "reward", training.trust_remote_code)
            rewards.append(
                load_reward(
                    found,
                    config.weight,
                    host,
                    source,
                    conversations,
                    training,
                    f"reward{number or ''}",
                    config.spread_penalty,
                )
            )
    return rewards


def load_reward(
    reward: ModelSource,
    weight: float,
    host: LanguageModelHost,
    policy: ModelSource,
    conversations: Conversations,
    training: LoadingConfig,
    adapter: str,
    spread_penalty: float = 0.0,
) -> Reward:
    """A reward model, mounted as `adapter` if it has the policy's base weights, precision and tokenizer.

    Raises:
        HandoffError: once mounted, its scores differ from those when it was saved.
    """
    own = load_chat(reward, trust_remote_code=training.trust_remote_code)
    one_language = chat_facts(own) == chat_facts(conversations.chat)
    held = format_held(whole_model(host.lm))
    rounds_by_batch = held is not None and held.name == "int8"  # by the largest activations beside a token
    held_as_policy = held == format_of(reward, None) and not rounds_by_batch and not rotates_rounded(reward)
    final = reward.folder or reward.probed
    scale = read_score_scale(final) if final else UNKNOWN_SCALE
    same_base = mounts(reward) and reward.base_sha256 == policy.base_sha256
    if one_language and same_base and held_as_policy and has_adapters(host.lm):
        head = mount_adapter(host.lm, reward, adapter)
        mounted = MountedReward(reward.name, weight, host, adapter, head, scale, spread_penalty)
        _verify_probe(mounted, reward)
        return mounted
    model = load_trained_reward_model(reward, training)
    if one_language:
        return SeparateReward(reward.name, weight, model, own.pad_id, scale=scale, spread_penalty=spread_penalty)

    def read(prompt: Sequence[int], completion: Sequence[int]) -> list[int]:
        asked = conversations.prompt(prompt)
        finished = conversations.chat.ends(completion)
        text = conversations.text(completion)
        try:
            before, after = own.encode_completion(asked.messages, text, finished, asked.tools)
        except HandoffError:  # a policy may write this model's end of turn
            before, after = own.encode_completion(asked.messages, own.without_marks(text), finished, asked.tools)
        return before + after

    prompts = list(conversations.prompts.values())
    encode_each(
        prompts, lambda one: own.encode_prompt(one.messages, one.tools), f"prompts, as {reward.name} reads them,"
    )

    return SeparateReward(reward.name, weight, model, own.pad_id, read, scale, spread_penalty)


def readable(
    prompts: Sequence[Prompt],
    models: Iterable[str],
    chat: Chat,
    training: LoadingConfig,
    dropping: Run | None = None,
) -> list[Prompt]:
    """The prompts that the chat template of every reward model accepts.

    Args:
        chat: the policy's; a reward model that reads the same tokens is not asked.
        dropping: the run that drops the others, and lists them (`on_bad_row: drop`).

    Raises:
        DataError: there are others, and dropping is off; or none is left.
    """
    for name in models:
        own = load_chat(find_model(name, "reward", training.trust_remote_code), None, training.trust_remote_code)
        if chat_facts(own) != chat_facts(chat):
            what = f"prompts, as {name} reads them,"
            prompts = [prompt for prompt, _ in encode_each(prompts, partial(_encode, own), what, dropping)]
    return list(prompts)


def _encode(chat: Chat, prompt: Prompt) -> list[int]:
    return chat.encode_prompt(prompt.messages, prompt.tools)


def mounts(reward: ModelSource) -> bool:
    """Whether a reward model is an adapter on layers, which can be one among others."""
    pinned = reward.pinned.get("adapter") or {}
    return reward.folder is not None and pinned.get("method") != "prompt"


def rotates_rounded(reward: ModelSource) -> bool:
    """Whether its adapter is OFT that was trained in bfloat16, as earlier versions did on quantised weights: in float32 it
    rotates a layer's inputs otherwise, and scores differ in the third digit."""
    if reward.folder is None or (reward.pinned.get("adapter") or {}).get("method") != "oft":
        return False
    probe = json.loads((reward.folder / PROBE_FILE).read_text(encoding="utf-8"))
    return bool(probe["coarsest_dtype"] != "float32")


def mount_adapter(lm: PeftModel, reward: ModelSource, name: str) -> nn.Linear:
    """Add the reward model's adapter to the policy's base weights; returns its score head. The policy's stays active.

    Raises:
        HandoffError: it is not a reward model, or its adapter does not fit.
    """
    from safetensors.torch import load_file

    if reward.folder is None:
        raise HandoffError(f"{reward.name} is a base model: reward_model must name the folder of a finished reward run")
    state = load_file(reward.folder / ADAPTER_FILE)
    heads = [key for key in state if key.endswith("score.weight")]
    if len(heads) != 1:
        raise HandoffError(f"{reward.folder / ADAPTER_FILE} has no score head: it is not a reward model")
    weight = state.pop(heads[0])
    Adapter.mount(lm, reward.folder, reward.name, name, state)
    members, hidden = weight.shape
    head = nn.Linear(hidden, members, bias=False, device=next(lm.parameters()).device, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head.requires_grad_(False)


def _verify_probe(mounted: MountedReward, reward: ModelSource) -> None:
    """Mounted on the policy's backbone, the reward model must score as it did after training."""
    if reward.folder is None:
        return
    probe = json.loads((reward.folder / PROBE_FILE).read_text())
    training = mounted.host.lm.training
    mounted.host.lm.eval()
    (members,) = mounted.member_scores([probe["input_ids"]], [[]])
    mounted.host.lm.train(training)
    allowed = PROBE_TOLERANCE_ELSEWHERE[
        next(p.dtype for p in mounted.host.lm.parameters() if p.dtype.is_floating_point)
    ]
    for score, saved in zip(members, probe["values"], strict=True):
        if not abs(score - saved) <= max(allowed, allowed * abs(saved)):
            raise HandoffError(
                f"{reward.name}: on this backbone it scores its probe {score:.6f}, but {saved:.6f} when it was saved"
            )
