"""The work of raters: assignment, answers, judgments, conversations, and who may judge."""
