"""The built-in data: drawn attribute-object compositions."""
