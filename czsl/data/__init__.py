"""Labelled images: importing, checking and reading them.

`importers` turns a published layout, a folder tree or a manifest into one dataset folder, `table` reads that folder,
`verify` and `stats` check and describe it, `images` decodes. Nothing here imports torch, apart from the reader of `.t7`
files, which does so when it is called.
"""
