"""Speculative decoding: what it accepts, what it costs, how much of it pays."""
