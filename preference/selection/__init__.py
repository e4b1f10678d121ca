"""Which pairs people judge: `configuration` has the keys, `pool` the pairs to choose from, `scores` what strategies
measure, `strategies` the choice.

    tiebreak select --pairs runs/quickstart/sample --selected-pairs 40 --output runs/quickstart/select
"""
