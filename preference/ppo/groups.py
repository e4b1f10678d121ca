"""RLOO and GRPO: TRL's own trainers and losses, on Tiebreak's rollouts and rewards.

Both sample several completions per prompt and need no critic: RLOO uses the mean score of a completion's siblings as its
baseline (Ahmadian et al. 2024), GRPO the group's mean and deviation (Shao et al. 2024). Replaced here: how TRL's trainers
sample completions (a seed per row, no computation on finished rows) and score them (every reward of the configuration,
normalised, with its weight and penalties), so that a configuration means the same under all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from preference.policy.adapters import POLICY
from preference.policy.backbone import Backbone, examples_to_check
from preference.policy.rewards import score_all
from preference.policy.rollout import policy_logps, table_of_logps
from preference.policy.token_rewards import shape_scores
from preference.policy.vllm import LOGP_DIFFERENCE
from preference.ppo.loop import PPOSettings, RewardsOf, SamplerOf, ScoredLoop, prompt_at
from tiebreak.chat.chat import textless_ids
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.packed.generation import SampledCompletion, row_seed
from tiebreak.packed.proof import (
    BatchResult,
    ForwardPath,
    Forwards,
    Proof,
    has_auxiliary_loss,
    own_logps,
    prove,
    weighted_sum,
)
from tiebreak.packed.sharding import at_own_pace
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import Passes
from tiebreak.upstream import GroupHooks, GRPOHooks, add_fused_head, metrics_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEFT_PADDING = 3
TRL_REFERENCE = "ref"
"""TRL's name of the adapter with the initial policy"""


class GroupLoop(GroupHooks, ScoredLoop):
    """Mixin for TRL's group trainers.

    The data set has the whole run's prompts in PPO's order: TRL's own order would start over with each epoch of a resumed
    run.
    """

    aux_loss_enabled: bool
    beta: float
    temperature: float

    def __init__(
        self,
        lm: Any,
        args: RLOOConfig | GRPOConfig,
        settings: PPOSettings,
        prompts: Sequence[list[int]],
        validation_prompts: Sequence[list[int]],
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardsOf | None = None,
        sampler: SamplerOf | None = None,
        passes: Passes | None = None,
        reference: Any = None,
    ) -> None:
        """On a policy with its adapter; other arguments as for PPOTrainer.

        Args:
            reference: the initial policy, where the policy's own weights train; None: an adapter of the policy's model.
        """
        asked = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        places = math.ceil(asked / args.num_iterations / args.num_generations)
        numbers = [prompt_at(place, len(prompts), settings.seed) for place in range(places)]
        beta, args.beta = args.beta, args.beta if reference is None else 0.0  # or TRL loads a reference of its own
        super().__init__(
            model=lm,
            reward_funcs=_scored_elsewhere,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(number) for number in numbers]}),
            eval_dataset=Dataset.from_dict({"prompt": ["0"]}) if validation_prompts else None,
            processing_class=tokenizer,
        )
        args.beta = beta
        if reference is None:
            self._require_reference_adapter(lm)
        else:
            self._take_reference(reference)
        switch_off_noise(lm)  # of both adapters
        self._begin(settings, prompts, validation_prompts)
        self.reward_func_names = ["score"]
        self.eos_token_ids = list(settings.stop_ids)  # TRL counts cut-off completions by these
        textless = textless_ids(tokenizer, lm.config.get_text_config().vocab_size)
        self._backbone = Backbone(lm, tokenizer.pad_token_id, reference or TRL_REFERENCE, textless)
        self._complete(rewards, sampler, proved=passes is not None)

    def _require_reference_adapter(self, lm: Any) -> None:
        if TRL_REFERENCE not in lm.peft_config:  # GRPO without a KL has none, but held-out figures need it
            Adapter(lm, POLICY).copy(TRL_REFERENCE)
            Adapter(lm, POLICY).train_alone()
        Adapter(lm, POLICY).copy_to(TRL_REFERENCE)  # TRL skips adapters on embeddings

    def _take_reference(self, reference: Any) -> None:
        """A second model as TRL's reference, in TRL's forward."""
        switch_off_noise(reference)
        self.beta = self.args.beta
        if self.beta:
            add_fused_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    @property
    def backbone(self) -> Backbone:
        """The policy for rollouts; its value head is unused."""
        backbone: Backbone = self._backbone
        return backbone

    def prove_path(self) -> Proof:
        """Verify rollouts' log-probabilities, and those of TRL's loss; a head unknown to TRL is called directly."""
        lm, temperature = self.model, self.settings.sampling.temperature
        rollouts = self._backbone.prove(self.prompts, temperature)
        examples = examples_to_check(self.prompts)
        rows, starts = [[*p, *c] for p, c in examples], [len(p) for p, _ in examples]
        training = lm.training
        lm.eval()
        self.aux_loss_enabled = self.aux_loss_enabled and has_auxiliary_loss(lm)
        truth = weighted_sum(own_logps(lm, rows, starts, temperature), lm)
        batch = to_group_batch(examples, self._backbone.pad_id, self._backbone.device)
        forwards = Forwards.of(lm, temperature=temperature, fused=True)

        def compute(path: ForwardPath) -> BatchResult:
            forwards.take(path)
            made = lm(**batch, use_cache=False, fused_lm_head=True)
            return weighted_sum(made.log_probs[batch["labels"][:, 1:] != -100], lm)

        found = prove(lm, [ForwardPath.PADDED, ForwardPath.PLAIN, ForwardPath.ALONE], truth, compute)
        lm.train(training)
        return replace(found, refused=(*rollouts.refused, *found.refused))

    def tokenize_prompts(self, prompts: list[str]) -> list[list[int]]:
        """The data set holds prompt numbers: the stage has tokenised the prompts."""
        return [self.prompts[int(number)] for number in prompts]

    def prepare_inputs(self, inputs: Any) -> Any:
        self._resume_generators()
        return super().prepare_inputs(inputs)

    def _rest_of_rollout(self) -> dict[str, Any] | None:
        """TRL's state: micro-batches used of a rollout, the rollout as split, and its pending log."""
        taken = self.micro_batches_taken()
        taken -= taken % self.args.gradient_accumulation_steps
        if not taken % (self.args.steps_per_generation * self.num_iterations):
            return None
        return {"step": taken, "inputs": self.buffered_rollout(), "metrics": dict(metrics_of(self)["train"])}

    def _take_up_rest(self, rest: dict[str, Any]) -> None:
        self.take_up_rollout(rest["step"], rest["inputs"])
        metrics_of(self)["train"].update(rest["metrics"])

    def draw_completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        self._resume_generators()
        first = self.accelerator.process_index * len(prompt_ids)
        seeds = [
            row_seed(self.settings.seed, "rollout", self.state.global_step, first + row)
            for row in range(len(prompt_ids))
        ]
        training = self.model.training
        self._backbone.eval()
        sampling = self.settings.sampling

        def sample() -> list[SampledCompletion]:
            with at_own_pace(self.model_wrapped, self._backbone), self.accelerator.autocast():
                drawn: list[SampledCompletion] = self.draw(
                    self._backbone, prompt_ids, seeds, sampling, stop_ids=self.settings.stop_ids
                )
                return drawn

        sampled = self._cut_short_by_signals(sample)
        completions = [one.ids for one in sampled]
        if self.vllm_sampler is not None:
            with at_own_pace(self.model_wrapped, self._backbone), self.accelerator.autocast():
                ours = policy_logps(self._backbone, prompt_ids, completions, sampling.temperature)
                difference = self._check_sampler(ours, *table_of_logps(sampled, self._backbone.device))
                metrics_of(self)["train"][LOGP_DIFFERENCE].append(difference)
        self.model.train(training)
        return completions

    def score_completions(self, prompts: list[str], completion_ids: list[list[int]]) -> Tensor:
        """The score of every completion on all processes, shape (completions, 1). TRL subtracts the KL, or not."""
        device = self.accelerator.device
        prompt_ids = [self.prompts[int(number)] for number in prompts]
        with at_own_pace(self.model_wrapped, self._backbone), self.accelerator.autocast():
            self._backbone.eval()
            scores = score_all(self.rewards, prompt_ids, completion_ids).to(device)
            self.model.train()
        finished = torch.tensor([ids[-1] in self.settings.stop_ids for ids in completion_ids], device=device)
        lengths = torch.tensor([len(ids) for ids in completion_ids], device=device)
        self._check_collapse(finished, lengths)
        self._set_scales(scores)
        shaping = self.shaping
        shaped = shape_scores(
            scores,
            finished,
            lengths,
            weights=shaping.weights,
            scales=shaping.scales,
            missing_eos_penalty=shaping.missing_eos_penalty,
            length_penalty=shaping.length_penalty,
        )
        weights = torch.tensor(shaping.weights, device=device)
        metrics_of(self)["train"]["objective/scores"].append(
            float(self.accelerator.gather(weights @ scores.to(weights.dtype)).mean())
        )
        everyones: Tensor = self.accelerator.gather(shaped[:, None])
        return everyones

    def roll_out(self, inputs: Any) -> Any:
        made = super().roll_out(inputs)
        kls = metrics_of(self)["train"]["kl"]
        if self.state.global_step == 0 and kls:
            self._require_same_policy(abs(kls[-1]))
        return made


class OurRLOOTrainer(GroupLoop, RLOOTrainer):
    """TRL's RLOO."""


class OurGRPOTrainer(GRPOHooks, GroupLoop, GRPOTrainer):
    """TRL's GRPO."""


def build_group_trainer(
    lm: Any, args: RLOOConfig | GRPOConfig, *given: Any, **options: Any
) -> OurRLOOTrainer | OurGRPOTrainer:
    """The trainer for these arguments; see GroupLoop for the others."""
    kind = OurRLOOTrainer if isinstance(args, RLOOConfig) else OurGRPOTrainer
    return kind(lm, args, *given, **options)


def to_group_batch(
    examples: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, device: torch.device
) -> dict[str, Tensor]:
    """(prompt, completion) pairs in the layout of TRL's group trainers: prompts left-padded, completions right-padded.

    All get some padding on the left, as short prompts do beside long ones.
    """
    before, after = LEFT_PADDING + max(len(p) for p, _ in examples), max(len(c) for _, c in examples)

    def laid_out(of_pad: int, of_prompt: Any, of_completion: Any) -> Tensor:
        rows = [
            [of_pad] * (before - len(p)) + of_prompt(p) + of_completion(c) + [of_pad] * (after - len(c))
            for p, c in examples
        ]
        return torch.tensor(rows, device=device)

    return {
        "input_ids": laid_out(pad_id, list, list),
        "attention_mask": laid_out(0, lambda p: [1] * len(p), lambda c: [1] * len(c)),
        "labels": laid_out(-100, lambda p: [-100] * len(p), list),
    }


def _scored_elsewhere(**kwargs: Any) -> list[float]:
    """Placeholder: TRL requires a reward function; `score_completions` replaces it."""
    raise NotImplementedError
