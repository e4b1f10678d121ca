"""`python -m evaluation.compare --config FILE`: the same as `tiebreak compare --config FILE`."""

from evaluation.compare import main

main()
