"""Model judges: pairs in, judgments out.

    tiebreak judge --pairs runs/quickstart/sample --function rubric --output runs/quickstart/judge

`configuration` has the keys, `questions` the questions and how verdicts are read, `local` and `endpoint` the judges,
`report` the figures and `page` the report's page.
"""
