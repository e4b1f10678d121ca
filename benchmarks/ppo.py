"""PPO beside that of TRL 1.12, the last TRL to have one: the case `ppo` of training.py, which prints and keeps its figures.

    python benchmarks/training.py --only ppo --rollouts 3

TRL 1.12 gets an environment of its own, `.bench/trl-1.12`, made at the first run and kept, with the versions of
constraints.txt otherwise. Each contestant runs in a fresh process, on one file that says what to do (rollouts.Job).

The same on both sides: base weights, prompts (every one of them an episode in every rollout), completions of exactly as
many tokens (the end-of-sequence token is drawn like any other and ends nothing: TRL's `stop_token=None`, our `stop_ids` of
no token), epochs, episodes an optimizer step, temperature, LoRA adapter, the reward model's function, γ, λ, both clip
ranges, vf_coef, kl_coef, learning rate; float32, allocator settings, threads.
Not the same: the random draws and with them the losses, so it is the first rollout that is compared, before any update:
its KL is 0 on both sides and the mean scores of its completions differ by no more than such draws do. The critic: TRL
trains a whole value model, started as the reward model; ours is a head on the policy, started at 0. The reward model:
TRL holds it whole; ours is an adapter and a head on the policy's base weights. Gradients: ours are clipped to norm 1;
Adam's ε: 1e-5 with us, 1e-8 with TRL.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import Measurement, run_alone
from rollouts import Job, RolloutClock, report, require_same_scores, write_report

TRL = "trl 1.12"
REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = REPOSITORY / ".bench" / "trl-1.12"
WANTED = ("trl==1.12.0", "peft", "transformers", "accelerate", "datasets")
MADE = "made-of.txt"
MINIBATCHES = 4
"""of a rollout: 32 episodes in steps of 8"""
NO_TOKEN = -1
"""an id that no token has, as the end-of-sequence token: no completion ends before its last token"""
FIRST_KL = 1e-3
"""nats a completion: what is 0 except for rounding"""
NOISE = 4.0
"""standard errors that two means of the same may be apart"""


# --- TRL 1.12's environment


def other_versions() -> list[str]:
    """The lines of constraints.txt but TRL's."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("trl==")]


def environment_is_made(folder: Path = ENVIRONMENT) -> bool:
    """Whether TRL 1.12's environment is there, of the versions that are wanted now."""
    made = folder / MADE
    return made.is_file() and made.read_text() == "\n".join([*WANTED, *other_versions()])


def trl_python(folder: Path = ENVIRONMENT) -> Path:
    """The Python of TRL 1.12's environment, which is made where it is not.

    torch comes first and by its exact version, as in the Makefile: without a GPU that is the CPU build.
    """
    python, constraints = folder / "bin" / "python", other_versions()
    if environment_is_made(folder):
        return python
    print(f"making {folder} for {WANTED[0]}: a minute, 1.5 GB", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pinned = folder / "constraints.txt"
    pinned.write_text("\n".join(constraints) + "\n")
    torch = [line for line in constraints if line.startswith("torch==")]
    for wanted in ([] if shutil.which("nvidia-smi") else [torch]) + [list(WANTED)]:
        install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(pinned), *wanted]
        if subprocess.run(install, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit(
                f"{', '.join(wanted)} could not be installed in {folder}; pip says why above. Mend it and run this again, "
                "or leave TRL 1.12 out: --contestants ours"
            )
    (folder / MADE).write_text("\n".join([*WANTED, *constraints]))
    return python


# --- the run


def measure_contestants(
    names: Sequence[str],
    prompts: list[list[int]],
    episodes_a_step: int,
    rollouts: int,
    model: str,
    matrix_products: str = "torch",
) -> dict[str, Measurement]:
    """`ours` and TRL 1.12, each in a process of its own, one after the other."""
    python = {name: trl_python() if name == TRL else Path(sys.executable) for name in names}
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        asked, job, answer = (Path(scratch) / f"{name}.json" for name in ("asked", "job", "answer"))
        values = {"prompts": prompts, "episodes_a_step": episodes_a_step, "rollouts": rollouts, "model": model}
        asked.write_text(json.dumps({**values, "matrix_products": matrix_products}))
        run_alone(sys.executable, __file__, "prepare", asked, job)
        for name in names:
            print(f"ppo, multi-turn: {name}", file=sys.stderr, flush=True)
            if name == TRL:
                own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
                script = Path(__file__).with_name("ppo_trl.py")
                own["TRL_EXPERIMENTAL_SILENCE"] = "1"
                run_alone(python[name], script, job, answer, environment=own, settled=False)
            else:
                run_alone(python[name], __file__, "ours", job, answer)
            measured[name] = Measurement(**json.loads(answer.read_text()))
    return measured


def first_rollouts(measured: dict[str, Measurement], episodes: int) -> dict[str, Any]:
    """Whether the contestants began alike: no KL before any update, and scores of one mean except for the draws."""
    ours, theirs = (measured[name].first_rollout for name in ("ours", TRL))
    error = math.sqrt((ours["score_deviation"] ** 2 + theirs["score_deviation"] ** 2) / episodes)
    apart = abs(ours["score_mean"] - theirs["score_mean"])
    return {
        "first_kls_are_zero": max(abs(ours["kl"]), abs(theirs["kl"])) <= FIRST_KL,
        "first_scores_apart_in_standard_errors": apart / error,
        "first_scores_agree": apart <= NOISE * error,
    }


def remarks(result: dict[str, Any]) -> list[str]:
    """What a table says under a PPO case's rows."""
    lines = []
    for name, one in result["contestants"].items():
        if one.get("phases"):
            parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in one["phases"].items())
            lines.append(f"a step of {name} is a rollout with its updates: {parts} s")
    if "first_scores_agree" in result:
        kls = "0 on both sides" if result["first_kls_are_zero"] else "NOT 0"
        scores = "agree" if result["first_scores_agree"] else "DIFFER"
        apart = result["first_scores_apart_in_standard_errors"]
        lines.append(f"first rollout: KL {kls}; mean scores {scores}, {apart:.1f} standard errors apart")
    return lines


# --- our side


def prepare(asked: dict[str, Any], folder: Path, *, for_trl: bool = True) -> Job:
    """Write what the contestants read: the tokenizer, and a reward model with a random adapter and head.

    Args:
        for_trl: also with its adapter merged, as TRL takes it.
    """
    import torch

    from tiebreak.chat.build import build_chat
    from tiebreak.config import AdapterConfig, TrainingConfig
    from tiebreak.models.adapters.adapter import Adapter
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_reward_model
    from tiebreak.models.probe import probe_values, write_probe
    from tiebreak.models.save import save_adapter
    from tiebreak.models.tokenizers import load_tokenizer
    from tiebreak.packed.logprobs import scores_in_batches

    source = find_model(asked["model"], kind="reward")
    tokenizer = load_tokenizer(source)
    adapter = AdapterConfig()
    model = load_reward_model(source, TrainingConfig(precision="float32"), adapter, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    probe = asked["prompts"][0]
    saved, whole = folder / "reward", folder / "reward-whole"
    save_adapter(saved, model, Adapter(model).state(), build_chat(tokenizer), source, "reward", adapter)
    write_probe(saved, probe, probe_values(model, probe), model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scored = scores_in_batches(model, asked["prompts"], tokenizer.pad_token_id, 4)
    if for_trl:
        model.merge_and_unload().save_pretrained(whole)
    return Job(
        **asked,
        base=str(source.base_path),
        tokenizer=str(saved),
        reward_adapter=str(saved),
        reward_whole=str(whole),
        scored=scored,
    )


def our_config(job: Job) -> Any:
    """The stage's configuration that does what the job says."""
    from preference.ppo.train import PPOConfig
    from tiebreak.config import AdapterConfig, SamplingConfig, TrainingConfig

    training = TrainingConfig(
        learning_rate=job.learning_rate,
        per_device_batch_size=job.episodes_a_step,
        warmup_share=0.0,
        precision=job.precision,  # type: ignore[arg-type]
        matrix_products=job.matrix_products,  # type: ignore[arg-type]
    )
    return PPOConfig(
        output="",
        policy=job.model,
        reward_model=job.reward_adapter,
        prompts="",
        adapter=AdapterConfig(r=job.r, alpha=job.alpha),
        training=training,
        episodes_per_rollout=len(job.prompts),
        rollouts=job.rollouts + 1,
        ppo_epochs=job.ppo_epochs,
        sampling=SamplingConfig(temperature=job.temperature, max_new_tokens=job.response_tokens),
        kl_coef=job.kl_coef,
        missing_eos_penalty=0.0,
        normalise_scores=False,
        stop_when_all_cut_off=False,
    )


def ours(job: Job, folder: Path) -> Measurement:
    """Train in this process, as the stage does."""
    from preference.policy import rollout

    config = our_config(job)
    trainer = our_trainer(job, config, folder)
    with trainer.accelerator.autocast():
        require_same_scores(trainer.rewards[0].scores(job.prompts, [[]] * len(job.prompts)), job)
    clock = RolloutClock(job.rollouts, config.rollouts, trainer.steps_per_rollout)
    first = time_rollouts(trainer, clock, job.response_tokens)
    rollout.sample_completions = clock.generating(rollout.sample_completions)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss/policy_avg" in row]
    losses = mean_of_each([row["loss/policy_avg"] for row in rows], trainer.steps_per_rollout)
    if not first:
        sys.exit("no rollout was drawn")
    return report(job, clock, losses, rows[0]["objective/kl"], first[0].scores[0].tolist())


def our_trainer(job: Job, config: Any, folder: Path) -> Any:
    """The stage's trainer, with the job's models and prompts."""
    from preference.policy.backbone import load_backbone
    from preference.policy.rewards import Conversations, load_reward
    from preference.ppo.train import build_ppo_args, ppo_settings
    from preference.ppo.trainer import PPOTrainer
    from tiebreak.chat.build import build_chat
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer
    from tiebreak.packed.products import use_products
    from tiebreak.runs.run import Run, identify

    training = config.training
    use_products(training.matrix_products)
    args = build_ppo_args(config, Run(folder, identify(config, "ppo", {})))
    args.save_strategy, args.logging_steps, args.disable_tqdm = "no", 1, True
    source = find_model(job.model)
    tokenizer = load_tokenizer(source)
    backbone = load_backbone(source, training, config.adapter, tokenizer)
    reward = replace(source, name="reward", kind="reward", folder=Path(job.reward_adapter))
    conversations = Conversations(build_chat(tokenizer), {})
    trainer = PPOTrainer(
        backbone,
        args,
        ppo_settings(config, (NO_TOKEN,)),
        job.prompts,
        [],
        rewards=lambda host: [load_reward(reward, 1.0, host, source, conversations, training, "reward")],
    )
    backbone.eval()
    return trainer


def time_rollouts(trainer: Any, clock: RolloutClock, response_tokens: int) -> list[Any]:
    """Have the clock read when a rollout is assessed; returns a list that gets the first rollout's episodes."""
    first: list[Any] = []
    sample_and_assess, to_micro_batches = trainer._sample_and_assess, trainer._to_micro_batches

    def sampled(*arguments: Any) -> Any:
        episodes = sample_and_assess(*arguments)
        first.extend([episodes] if not first else [])
        if {len(completion) for completion in episodes.completions} != {response_tokens}:
            sys.exit(f"a completion of ours is not of {response_tokens} tokens")
        return episodes

    def batched(*arguments: Any) -> Any:
        batches = to_micro_batches(*arguments)
        clock.assessed()
        return batches

    trainer._sample_and_assess, trainer._to_micro_batches = sampled, batched
    trainer.add_callback(clock)
    return first


def mean_of_each(values: list[float], count: int) -> list[float]:
    """Of every `count` values, their mean."""
    return [sum(values[start : start + count]) / count for start in range(0, len(values), count)]


def main() -> None:
    """One part of a run, in its own process: training.py starts them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prepare", "ours"])
    parser.add_argument("job", type=Path, help="prepare: what it is made of")
    parser.add_argument("answer", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.part == "prepare":
        prepare(json.loads(options.job.read_text()), options.job.parent).write(options.answer)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_report(ours(Job.read(options.job), Path(scratch)), options.answer)


if __name__ == "__main__":
    main()
