"""What one worker does, on any engine: no Ray, no other machine."""
