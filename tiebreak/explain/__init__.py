"""Why a model scored or wrote an answer as it did: words, tokens, and the training pairs behind it."""
