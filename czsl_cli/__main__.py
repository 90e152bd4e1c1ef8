"""``python -m czsl_cli``: the same as the ``czsl`` script."""

from czsl_start import main

main()
