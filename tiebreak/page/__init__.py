"""The common look of our reports: markup, tables, charts, and self-contained pages."""
