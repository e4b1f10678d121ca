"""The database of the label store: tables, migrations, the event log, and the statements of the hot path."""
