"""ComCLIP: sub-images of entities and relations, weighted by how well they fit their words, added to the image; without training."""
