"""Documentation of a model from the manifests of the runs that it was made by."""
