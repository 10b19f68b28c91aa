"""The engine: scheduler, KV cache and the loop around them."""
