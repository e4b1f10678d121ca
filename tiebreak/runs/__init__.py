"""Run folders: identity, contents, and lineage."""
