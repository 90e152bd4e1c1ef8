"""The same work across a Ray cluster: the only place that imports Ray."""
