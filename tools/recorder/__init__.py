"""Recording real engines: what to send, how to watch, how it is written down."""
