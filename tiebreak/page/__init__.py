"""The look that our reports share: markup, tables, charts, and a page that needs nothing but itself."""
