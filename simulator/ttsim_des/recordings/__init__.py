"""Recordings of real servers: what was asked, and when what came back."""
