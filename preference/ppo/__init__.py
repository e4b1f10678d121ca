"""Policy optimisation against reward models and functions, on one backbone: PPO, RLOO, GRPO.

    tiebreak ppo --config configs/quickstart/ppo.yaml
    accelerate launch --config_file configs/accelerate/zero2.yaml -m preference.ppo --config configs/quickstart/ppo.yaml

TRL has no PPO trainer since 1.13, so this one is our own. It follows Schulman et al. 2017 and, where it takes a default
from there, "The N+ Implementation Details of RLHF with PPO" (Huang et al. 2024).

    losses.py     advantages and losses, as pure functions
    loop.py       shared by the three algorithms: scores, held-out prompts, checkpoints
    trainer.py    PPO, on transformers.Trainer
    groups.py     RLOO and GRPO: TRL's trainers on the same rollouts and rewards
    train.py      the stage

`preference.policy` has the parts that DPO's guard needs too: the backbone, adapters, rewards and rollouts.

`algorithm: ppo|rloo|grpo` chooses. The KL in the reward is k1, log π − log π_ref; k3, which is less noisy, is used for
control and early stops, and must not be used in a reward (see preference.policy.token_rewards).
"""
