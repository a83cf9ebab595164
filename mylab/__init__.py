"""A lab's own code, as `specs/own_model.yaml` uses it: a model, a data set and a metric."""
