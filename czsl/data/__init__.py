"""Labelled images: importing, checking, reading and exporting them.

`importing` turns a published layout, a folder tree, a table or another program's annotations into a dataset folder. `table` reads that
folder, `verify` and `stats` check and describe it, `export` and `exchange` write it out again. `inputs`, `archives` and `images` find and
decode images to predict on. `batches` and `augment` import torch; the other modules do not, except for the reader of `.t7` files, which
does when it is called.
"""
