"""Documentation of a model from the manifests of the runs that made it."""
