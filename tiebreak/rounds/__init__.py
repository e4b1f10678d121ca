"""Rounds of sampling, judging and training.

`configuration` has the keys, `loop` runs them, `joining` puts the rounds' labels together, `figures` reads what a round
came to, `stopping` decides whether there is another one, `page` draws the report.

    tiebreak rounds --config configs/rounds/quickstart.yaml
"""
