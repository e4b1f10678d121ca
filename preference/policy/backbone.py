"""Policy, reference, reward models and value head on one set of base weights.

    base weights (frozen, perhaps 4-bit)
      ├── adapter "default"     the policy, which trains      ── value head
      ├── adapter "reference"   the initial policy
        └── adapter "reward…"     a reward model's, see preference/policy/rewards.py

The value head reads the policy's last hidden state, so one pass gives log-probabilities and values; it starts at 0, the
mean of the normalised scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from preference.policy.adapters import POLICY, REFERENCE, has_adapters
from preference.policy.layout import Layout, pack, pad
from tiebreak.chat.chat import textless_ids
from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.errors import HandoffError
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import ModelSource
from tiebreak.models.load import load_copy, load_policy
from tiebreak.packed.forward import packs, why_not
from tiebreak.packed.fused import fuse_layers
from tiebreak.packed.lm_head import HeadOutput, head_of
from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import (
    TOKENS_CHECKED,
    BatchResult,
    ForwardPath,
    Proof,
    own_logps,
    prove,
    take_own_layers,
    weighted_sum,
)
from tiebreak.terminal import say
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import ROWS_LOOKED_AT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VALUE_HEAD_FILE = "value_head.safetensors"


@dataclass(frozen=True)
class Batch:
    """Episodes in the backbone's layout."""

    layout: Layout
    before: Tensor
    """position in the layout of the token before each completion token, shape (completion tokens,)"""
    targets: Tensor
    """the completion tokens, episode after episode, shape (completion tokens,)"""
    mask: Tensor
    """mask of existing tokens, shape (episodes, tokens)"""


class Backbone(nn.Module):
    """One language model with its adapters, and the value head. `forward` is the policy's training pass."""

    def __init__(
        self, lm: Any, pad_id: int, reference: str | nn.Module = REFERENCE, textless_ids: Sequence[int] = ()
    ) -> None:
        """The language model, with PEFT's wrapper or, where its own weights train, without.

        Args:
            reference: the initial policy: the name of an adapter, or a second model.
            textless_ids: ids that are never drawn (tiebreak.chat.chat.Chat.textless_ids).
        """
        super().__init__()
        self.lm = lm
        self.reference = REFERENCE if isinstance(reference, nn.Module) else reference
        self._copy = [reference] if isinstance(reference, nn.Module) else []  # in a list: no part of this module
        self._is_copy = False
        self.value_head = nn.Linear(
            lm.config.get_text_config().hidden_size, 1, device=next(lm.parameters()).device, dtype=torch.float32
        )
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.pad_id = pad_id
        self.textless_ids = tuple(textless_ids)
        self.config = lm.config
        fuse_layers(lm)
        base = whole_model(lm)
        self.head = head_of(base)
        reason = why_not(base)
        self.packs = not reason and packs(base) and all(map(packs, self._copy))
        if reason:
            say(f"completions are padded: {type(base).__name__} does not support packing, because {reason}")

    @property
    def models_beside(self) -> Sequence[nn.Module]:
        """The reference, where it is a model of its own."""
        return self._copy

    @property
    def device(self) -> torch.device:
        """Its device."""
        device: torch.device = self.value_head.weight.device
        return device

    def lay_out(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Layout:
        """Prompts and completions in this model's layout: packed, or padded if it does not support that."""
        if self.packs:
            return pack(prompts, completions, self.device)
        return pad(prompts, completions, self.pad_id, self.device)

    def to_batch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Batch:
        """Prompts and completions in `forward`'s layout."""
        layout = self.lay_out(prompts, completions)
        lengths = torch.tensor([len(c) for c in completions], device=self.device)
        before = [
            places[len(p) - 1 : len(p) - 1 + len(c)]
            for places, p, c in zip(layout.places, prompts, completions, strict=True)
        ]
        return Batch(
            layout,
            torch.cat(before),
            torch.tensor([token for c in completions for token in c], device=self.device),
            torch.arange(int(lengths.max()), device=self.device) < lengths[:, None],
        )

    def forward(
        self, batch: Batch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(logps, values, entropy) of completion tokens, each of shape (episodes, tokens), 0 where masked."""
        hidden = self.hidden_states(batch.layout)[batch.before]
        head = self._head(hidden, batch.targets, temperature, entropy_gradient)
        values = self.value_head(hidden.float()).squeeze(-1)
        logps, values, entropy = (_spread(flat, batch.mask) for flat in (head.logps, values, head.entropy))
        return logps, values, entropy

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Called by transformers' trainer for `training.gradient_checkpointing`."""
        base: Any = whole_model(self.lm)
        base.activation_checkpointing_enable(**options)

    @contextmanager
    def acting(self, name: str = POLICY) -> Iterator[None]:
        """Compute as the policy, or as `self.reference`: with its adapter, in the weights where that is exact, or with its
        own copy of the weights. A copy is on this module's device."""
        if has_adapters(self.lm):
            with Adapter(self.lm, name).merged():
                yield
            return
        before, self._is_copy = self._is_copy, name != POLICY
        if self._is_copy:
            self._copy[0].to(self.device)
        try:
            yield
        finally:
            self._is_copy = before

    def hidden_states(self, layout: Layout) -> Tensor:
        """The last hidden states of the model that computes now, flattened to (tokens, hidden)."""
        return layout.hidden_states(self._copy[0] if self._is_copy else whole_model(self.lm))

    def _head(self, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool = False) -> HeadOutput:
        head = head_of(self._copy[0]) if self._is_copy else self.head
        return head.token_logps(hidden, targets, temperature, entropy_gradient=entropy_gradient)

    @torch.no_grad()
    def logps(self, batch: Batch, temperature: float) -> Tensor:
        """Log-probabilities only, in `forward`'s shape, under the active adapter."""
        hidden = self.hidden_states(batch.layout)[batch.before]
        return _spread(self._head(hidden, batch.targets, temperature).logps, batch.mask)

    def load_value_head(self, file: Path) -> None:
        """Start the critic from another run's.

        Raises:
            HandoffError: it is missing, or is from a model of another size.
        """
        from safetensors.torch import load_file

        if not file.is_file():
            raise HandoffError(f"value_head: {file} does not exist: name a finished PPO run, or set value_head: null")
        state = load_file(file)
        found, wanted = tuple(state["weight"].shape), tuple(self.value_head.weight.shape)
        if found != wanted:
            raise HandoffError(
                f"value_head: {file} reads hidden states of size {found[-1]}, and this policy's have {wanted[-1]}: name "
                "a PPO run of the same base model, or set value_head: null for a new critic"
            )
        self.value_head.load_state_dict(state)

    def prove(self, prompts: Sequence[Sequence[int]], temperature: float) -> Proof:
        """Choose the layout whose log-probabilities and gradient equal the language model's own forward.

        Args:
            prompts: token ids; the second half of each is used as a completion, forwards and backwards.

        Raises:
            ModelError: no layout does.
        """
        examples = examples_to_check(prompts)
        training = self.lm.training
        self.eval()
        rows, starts = [[*p, *c] for p, c in examples], [len(p) for p, _ in examples]
        truth = weighted_sum(own_logps(self.lm, rows, starts, temperature), self.lm)

        def compute(path: ForwardPath) -> BatchResult:
            self.packs = path == ForwardPath.PACKED
            if not self.packs:
                for model in (self.lm, *self._copy):
                    take_own_layers(model)
            batch = self.to_batch([p for p, _ in examples], [c for _, c in examples])
            logps, _, _ = self(batch, temperature)
            return weighted_sum(logps[batch.mask], self.lm)

        proof = prove(self.lm, [*([ForwardPath.PACKED] if self.packs else []), ForwardPath.PADDED], truth, compute)
        self.train(training)
        return proof


def examples_to_check(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) pairs made from prompts, up to a token limit."""
    examples: list[tuple[list[int], list[int]]] = []
    tokens = 0
    for ids in sorted(prompts[:ROWS_LOOKED_AT], key=len):
        if len(ids) > 1 and (not examples or tokens + 2 * len(ids) <= TOKENS_CHECKED):
            half = len(ids) // 2
            examples += [(list(ids[:half]), list(ids[half:])), (list(ids[:half]), list(ids[: half - 1 : -1]))]
            tokens += 2 * len(ids)
    return examples


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of the masked-in tokens, in a table that is 0 elsewhere."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def load_backbone(
    policy: ModelSource,
    training: OptimizerConfig,
    adapter: AdapterConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]] = (),
) -> Backbone:
    """Policy, reference and value head. Reward models are mounted later. Where the policy's own weights train, the
    reference is a second copy of the model."""
    lm = load_policy(policy, training, adapter, tokenizer, rows)
    textless = textless_ids(tokenizer, lm.config.get_text_config().vocab_size)
    if not has_adapters(lm):
        reference = load_copy(policy, training)
        for model in (lm, reference):
            switch_off_noise(model)
        return Backbone(lm, tokenizer.pad_token_id, reference, textless)
    Adapter(lm, POLICY).copy(REFERENCE)
    Adapter(lm, POLICY).train_alone()
    switch_off_noise(lm)  # π and π_old must be one function (Huang et al. 2024, 4.2)
    return Backbone(lm, tokenizer.pad_token_id, textless_ids=textless)
