"""DFSP: decomposed text features fused with the tokens of images."""
