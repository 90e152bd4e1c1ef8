"""Files that accompany the images of a dataset: regions, descriptors, candidate labels, predictions."""
