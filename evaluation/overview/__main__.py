"""`python -m evaluation.overview RUNS…`: the same as `tiebreak compare RUNS…`."""

from evaluation.overview import main

main()
