"""LaZSL: local alignment of image regions and descriptions by optimal transport, without training."""
