"""What comes of a sample: how long it is, whether it is right, what it answers, and how a verifier scores it."""
