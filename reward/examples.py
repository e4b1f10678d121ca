"""Preferences as token ids, for reward training and for examining a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import encode_each
from tiebreak.messages import prompt_id, split_key
from tiebreak.records import Preference
from tiebreak.runs.run import Run
from tiebreak.training.stage import drop_too_long


@dataclass(frozen=True)
class EncodedPreference:
    """Token ids of a preference, and its label."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float
    """required difference of the scores"""
    source: Preference
    target: float = 1.0
    """the probability that the chosen answer is the better one"""
    weight: tuple[float, ...] = (1.0,)
    """weight of the pair for each member"""

    @property
    def group(self) -> str:
        """The prompt's id: pairs of one prompt are not independent."""
        return self.source.prompt_id or prompt_id(self.source.prompt, self.source.tools)


def prompt_keys(preference: Preference) -> set[str]:
    """The id of its prompt, and the key that is the same however its blanks and characters are written."""
    identity = preference.prompt_id or prompt_id(preference.prompt, preference.tools)
    return {identity, split_key(preference.prompt, preference.tools)}


def encode(
    preferences: Sequence[Preference], chat: Chat, max_length_tokens: int, dropping: Run | None = None
) -> list[EncodedPreference]:
    """Token ids of the preferences within the length limit, with no margin, a certain target and equal weights."""

    def encode_one(preference: Preference) -> EncodedPreference:
        chosen, rejected = chat.encode_preference(preference)
        return EncodedPreference(chosen.prompt, chosen.completion, rejected.completion, margin=0.0, source=preference)

    encoded = [made for _, made in encode_each(preferences, encode_one, "preferences", dropping)]
    lengths = [len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in encoded]
    return drop_too_long(encoded, lengths, max_length_tokens, "preferences")
