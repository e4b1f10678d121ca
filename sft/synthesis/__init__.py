"""`tiebreak synthesise`: prompts, answers and pairs from a model or from rules, for people to review."""
