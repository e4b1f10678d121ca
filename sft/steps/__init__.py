"""The steps of `tiebreak prepare`: repair text, drop or flag rows, hide personal data. A step is one file, and its entry in
sft.configuration.STEPS.
"""
