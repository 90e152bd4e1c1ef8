"""CLIP's two towers: loading (`backbone`), images (`vision`) and text (`text`)."""
