"""Work of one worker on any engine: no Ray, no other machine."""
