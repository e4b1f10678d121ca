"""The label store: its tables, its log of events, and the transactions in which raters judge and leads decide."""
