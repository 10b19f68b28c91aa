"""Validation: replay what a real engine did and say how far off the simulation is."""
