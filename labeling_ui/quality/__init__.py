"""How good judgments are: agreement, bias, the reliability of raters, and what their votes say together."""
