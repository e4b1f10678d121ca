"""Rounds of sampling, judging and training.

`configuration` has the keys, `loop` runs them, `joining` puts the rounds' labels together, `results` reads a round's
results, `stopping` decides whether there is another one, `page` draws the report.

    tiebreak rounds --config configs/rounds/quickstart.yaml
"""
