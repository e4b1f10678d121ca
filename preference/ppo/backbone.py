"""Policy, reference, reward model and value head on one set of base weights.

    base weights (frozen, perhaps 4-bit)
      ├── adapter "default"     the policy, which trains      ── value head
      ├── adapter "reference"   the policy as it was
      └── adapter "reward"      the reward model's            ── score head

The reward model stands apart only where its base weights differ. The value head reads the policy's last hidden state,
so one pass gives log-probabilities and values; it starts at 0, the mean of the normalised scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.errors import HandoffError
from tiebreak.head import HeadOutput, logits_are_plain, token_logps
from tiebreak.logprobs import pad_right
from tiebreak.models import (
    ADAPTER_FILE,
    PROBE_FILE,
    PROBE_TOLERANCE_ELSEWHERE,
    ModelSource,
    active_adapter,
    is_quantized,
    load_policy,
    load_trained_reward_model,
    lora_config,
    saved_adapter,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

POLICY, REFERENCE, REWARD = "default", "reference", "reward"


class Backbone(nn.Module):
    """One language model with three adapters and two heads. `forward` is the policy's training pass."""

    def __init__(
        self, lm: PeftModel, score_head: nn.Linear | None, reward_model: nn.Module | None, pad_id: int
    ) -> None:
        super().__init__()
        self.lm = lm
        self.score_head = score_head
        hidden = lm.config.get_text_config().hidden_size
        device = next(lm.parameters()).device
        self.value_head = nn.Linear(hidden, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._apart = [reward_model] if reward_model is not None else []  # a list, so that it is no part of this module
        self.pad_id = pad_id
        self.config = lm.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, at: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(logps, values, entropy) of completion tokens, each of shape (episodes, tokens), 0 where masked.

        Args:
            input_ids, attention_mask: prompts with their completions, padded on the right, shape (episodes, length).
            at: positions of the completion tokens in `input_ids`, shape (episodes, tokens).
            mask: which of them are real, shape (episodes, tokens).
        """
        hidden = self._hidden(input_ids, attention_mask)
        before = hidden.gather(1, (at - 1).clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))
        head = self._head(before[mask], input_ids.gather(1, at)[mask], temperature)
        zeros = mask.new_zeros(mask.shape, dtype=torch.float32)
        logps = zeros.masked_scatter(mask, head.logps)
        entropy = zeros.masked_scatter(mask, head.entropy)
        values = self.value_head(before.float()).squeeze(-1) * mask
        return logps, values, entropy

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """What transformers' trainer calls for `training.gradient_checkpointing`."""
        self.lm.get_base_model().activation_checkpointing_enable(**options)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden states under the adapter that is active, shape (episodes, length, hidden)."""
        base = self.lm.get_base_model()
        hidden: Tensor = base.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor, targets: Tensor, temperature: float) -> HeadOutput:
        return token_logps(hidden, self.lm.get_base_model().get_output_embeddings(), targets, temperature)

    @torch.no_grad()
    def reference_logps(
        self, input_ids: Tensor, attention_mask: Tensor, at: Tensor, mask: Tensor, temperature: float
    ) -> Tensor:
        """The reference's log-probabilities, in the shape of `forward`'s."""
        with active_adapter(self.lm, REFERENCE):
            return self.forward(input_ids, attention_mask, at, mask, temperature)[0]

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """The reward model's score of each sequence, read at its last token. Shape (sequences,)."""
        device = self.value_head.weight.device
        ids, mask = pad_right(sequences, self.pad_id, device)
        if self._apart:
            scored: Tensor = self._apart[0](input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1)
            return scored.float()
        if self.score_head is None:
            raise ValueError("no reward model on this backbone")
        with active_adapter(self.lm, REWARD):
            hidden = self._hidden(ids, mask)
        last = hidden[torch.arange(len(sequences), device=device), mask.sum(-1) - 1]
        return self.score_head(last.to(self.score_head.weight.dtype)).squeeze(-1).float()

    def trainable_names(self) -> list[str]:
        """Names of the parameters that train: the policy's adapter and the value head."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]


def load_backbone(
    policy: ModelSource,
    reward: ModelSource,
    training: TrainingConfig,
    adapter: AdapterConfig | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Backbone:
    """Everything PPO needs, on one base where the bases are the same.

    Raises:
        HandoffError: the reward model on this backbone scores otherwise than it did when it was saved.
    """
    lm = load_policy(policy, training, adapter, tokenizer)
    if not logits_are_plain(lm.get_base_model()):
        raise HandoffError(f"{policy.base}: its logits are capped or scaled after the head, which PPO does not support")
    _copy_adapter(lm, POLICY, REFERENCE)
    shared = reward.base_sha256 == policy.base_sha256 and is_quantized(reward, None) == is_quantized(policy, adapter)
    score_head = _mount_reward_adapter(lm, reward) if shared else None
    apart = None if shared else load_trained_reward_model(reward, training)
    _train_only(lm, POLICY)
    backbone = Backbone(lm, score_head, apart, tokenizer.pad_token_id)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # π and π_old must be one function (Huang et al. 2024, 4.2)
    if shared:
        _verify_reward_probe(backbone, reward)
    return backbone


def _copy_adapter(lm: PeftModel, source: str, name: str) -> None:
    lm.add_adapter(name, lm.peft_config[source])
    parameters = dict(lm.named_parameters())
    with torch.no_grad():
        for key, parameter in parameters.items():
            if f".{name}." in key:
                parameter.copy_(parameters[key.replace(f".{name}.", f".{source}.")])


def _mount_reward_adapter(lm: PeftModel, reward: ModelSource) -> nn.Linear:
    """Add the reward model's adapter to the policy's backbone; returns its score head."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if reward.folder is None:
        raise HandoffError(f"{reward.name} is a base model: reward_model must name the folder of a finished reward run")
    state = load_file(reward.folder / ADAPTER_FILE)
    heads = [key for key in state if key.endswith("score.weight")]
    if len(heads) != 1:
        raise HandoffError(f"{reward.folder / ADAPTER_FILE} has no score head: it is not a reward model")
    weight = state.pop(heads[0])
    lm.add_adapter(REWARD, lora_config(saved_adapter(reward), "CAUSAL_LM"))
    loaded = set_peft_model_state_dict(lm, state, adapter_name=REWARD)
    if loaded.unexpected_keys:
        raise HandoffError(f"{reward.name}: its adapter does not fit this backbone: {loaded.unexpected_keys[:3]}")
    head = nn.Linear(weight.shape[1], 1, bias=False, device=next(lm.parameters()).device, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head.requires_grad_(False)


def _train_only(lm: PeftModel, name: str) -> None:
    lm.set_adapter(name)
    for key, parameter in lm.named_parameters():
        parameter.requires_grad_(f".{name}." in key)


def _verify_reward_probe(backbone: Backbone, reward: ModelSource) -> None:
    """The reward model, moved onto the policy's backbone, must score as it did where it was trained."""
    if reward.folder is None:
        return
    probe = json.loads((reward.folder / PROBE_FILE).read_text())
    backbone.eval()
    score = float(backbone.scores([probe["input_ids"]])[0])
    allowed = PROBE_TOLERANCE_ELSEWHERE[next(p.dtype for p in backbone.lm.parameters() if p.dtype.is_floating_point)]
    if not abs(score - probe["values"][0]) <= max(allowed, allowed * abs(probe["values"][0])):
        raise HandoffError(
            f"{reward.name}: on this backbone it scores its probe {score:.6f}, and scored it {probe['values'][0]:.6f} "
            "when it was saved"
        )
