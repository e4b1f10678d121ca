"""The keys of `tiebreak chat` and `tiebreak serve`. Nothing here imports model code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tiebreak.config import SamplingConfig, Section


class ChatArguments(Section):
    """`tiebreak chat`. Commands: /system TEXT, /clear, /save FILE, /help, /exit. Ctrl-C stops an answer, not the
    program. Without a terminal, each line of standard input is a turn."""

    against: str | None = None
    """a second policy, which answers the same questions in its own conversation"""
    reward_model: str | None = None
    """a finished reward run, to show its score below each answer"""
    system: str | None = None
    """the system message"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, max_new_tokens=512)
    """how answers are drawn"""
    seed: int = Field(default=0, ge=0)
    """random seed: the same seed and turns give the same answers"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the GPU has it, float32 elsewhere"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""


class ServeArguments(Section):
    """`tiebreak serve`. The run is exported once, to exports/ in its folder, and the server reads the export."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """transformers: transformers' server, on any machine; vllm: vLLM's server, on a GPU"""
    host: str = "127.0.0.1"
    """address to listen on; any but a loopback address opens the server to other machines, without a password"""
    port: int = Field(default=8000, ge=1, le=65535)
    """the port to listen on"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
