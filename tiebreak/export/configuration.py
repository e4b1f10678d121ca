"""The keys of `tiebreak export`. Nothing here imports model code."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from tiebreak.config import Section

Format = Literal["safetensors", "adapter", "gguf", "ollama", "vllm", "hub"]
Dtype = Literal["auto", "fp32", "bf16", "fp16", "q8_0"]
IN_GGUF: tuple[Format, ...] = ("gguf", "ollama")
OF_POLICIES: tuple[Format, ...] = ("gguf", "ollama", "vllm")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_SIZE = re.compile(r"\d+(\.\d+)?\s?[KMGT]i?B")


class ExportArguments(Section):
    """`tiebreak export`. The result is loaded in a fresh process, without Tiebreak, and must reproduce the run's
    probe."""

    to: Format
    """safetensors, vllm: whole weights; adapter: PEFT's folder; gguf: one file for llama.cpp; ollama: the same with a
    Modelfile; hub: safetensors, pushed to the hub"""
    output: str | None = None
    """the folder to write, which must not exist; null: exports/ in the run's folder"""
    dtype: Dtype = "auto"
    """number format of the weights; auto: fp16 for GGUF, otherwise the base model's; q8_0: only for GGUF"""
    shard_size: str = "5GB"
    """largest size of a weights file"""
    adapter_only: bool = False
    """hub: push the adapter instead of merged weights"""
    repo: str | None = None
    """hub: OWNER/NAME"""
    private: bool = True
    """hub: whether a new repository is private"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""

    @field_validator("shard_size")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        if not _SIZE.fullmatch(value):
            raise ValueError("must be a number with its unit, such as 5GB or 500MB")
        return value.replace(" ", "")

    @model_validator(mode="after")
    def _fits_the_format(self) -> ExportArguments:
        if self.dtype == "q8_0" and self.to not in IN_GGUF:
            raise ValueError("dtype: q8_0 is a format of GGUF: use --to gguf or ollama, or fp32, bf16 or fp16")
        if self.dtype != "auto" and self.writes_adapter:
            raise ValueError("dtype: an adapter is exported as it was trained: leave dtype out")
        if self.to == "hub" and not (self.repo and _REPO.fullmatch(self.repo)):
            raise ValueError("repo: --to hub needs --repo OWNER/NAME")
        if self.to != "hub" and (self.repo is not None or self.adapter_only):
            raise ValueError("repo and adapter_only belong to --to hub")
        return self

    @property
    def writes_adapter(self) -> bool:
        """Whether the adapter alone is written."""
        return self.to == "adapter" or self.adapter_only
