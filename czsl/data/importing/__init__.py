"""From foreign data to a dataset folder."""
