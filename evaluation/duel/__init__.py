"""Policies compared by people on held-out prompts.

    tiebreak duel --evaluation runs/x/evaluate --output runs/x/duel
    tiebreak label --pairs runs/x/duel --batch duel --output runs/x/duel-label
    tiebreak duel report --duel runs/x/duel --judgments runs/x/duel-label --output runs/x/duel-report

`configuration` has the keys, `pairs` makes the pairs, `win_rates` the report's figures and `page` its page.
"""
