"""Command line and terminal output."""

from czsl_start import exit_if_shadowed

exit_if_shadowed()
