"""Memory, time and cost of training, by arithmetic on a model's configuration: nothing is loaded, torch is not imported."""
