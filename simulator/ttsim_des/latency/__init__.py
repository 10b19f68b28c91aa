"""Time of an engine step from its shape: kernel profiles, model geometry and the two step models."""
