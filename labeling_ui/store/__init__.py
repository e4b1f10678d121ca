"""The label store: tables, event log, and the transactions of raters and leads."""
