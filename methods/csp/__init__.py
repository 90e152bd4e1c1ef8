"""CSP: learned words on a frozen CLIP."""
