"""What is asked of the system: arrivals, prompts, output lengths and the strategies that answer queries."""
