"""The sections of an endpoint. They import no model code."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tiebreak.config import Section


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible API."""

    url: str = "https://api.openai.com/v1"
    """the API's base URL, such as http://127.0.0.1:8000/v1"""
    model: str
    """the model's name at the endpoint"""
    key_variable: str | None = "OPENAI_API_KEY"
    """the environment variable with the API key, which is never written to a file; null: no key"""
    input_price: float | None = Field(default=None, ge=0)
    """price of a million prompt tokens, in any currency; null: costs are not computed"""
    output_price: float | None = Field(default=None, ge=0)
    """price of a million completion tokens"""

    @model_validator(mode="after")
    def _possible(self) -> EndpointConfig:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url: a URL such as https://api.openai.com/v1 is needed")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "url: it must hold no user, password or query; keys belong in the environment (key_variable)"
            )
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price: give both, or neither")
        return self

    def cost_of(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Price of an answer; None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6


class AskingConfig(Section):
    """How fast an endpoint is asked, and how much may be spent. No verdict depends on it: it may change between two starts
    of one run."""

    parallel: int = Field(default=8, ge=1, le=256)
    """concurrent requests"""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """requests per minute; null: no limit but the endpoint's own"""
    retries: int = Field(default=6, ge=0, le=100)
    """retries of a request that failed or hit the rate limit, after 1, 2, 4, … seconds, or as long as the endpoint asks
    for"""
    longest_wait_seconds: float = Field(default=60.0, ge=0)
    """longest wait between retries"""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """longest wait for one answer"""
    max_tokens: int | None = Field(default=None, ge=1)
    """token budget, prompts and answers together: stop before exceeding it; null: no limit"""
    max_cost: float | None = Field(default=None, gt=0)
    """cost budget, in the currency of the prices: stop before exceeding it; null: no limit"""
