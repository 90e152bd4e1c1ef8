"""The jobs of the command line on one worker or many; the only package that imports Ray."""

from czsl_start import require

require("czsl", "methods", "cluster")
