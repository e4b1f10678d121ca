"""The arguments of `tiebreak explain`. They import no model code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tiebreak.config import Section


class ExplainArguments(Section):
    """`tiebreak explain`. RUN is a finished reward or policy run."""

    prompt: str
    """the prompt"""
    answer: str
    """the answer to it that is explained"""
    against: str | None = None
    """of a policy: the policy to compare it with, token by token; null: the one from which its training started"""
    pairs: bool = False
    """also estimate how each training pair moved the score, or the log-probability of the answer; of a model with a LoRA
    adapter that was trained on pairs"""
    shown: int = Field(default=10, ge=1)
    """training pairs to show, for and against"""
    html: bool = False
    """also write a page"""
    output: str = "explain.html"
    """the file for --html"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""
    batch_size: int = Field(default=16, ge=1)
    """answers scored at once"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format of the weights; auto is bfloat16 where the GPU has it, float32 elsewhere"""
    trust_remote_code: bool = False
    """run the model's own Python code"""
