"""The simulation: clients and their strategies, pools of engines, one timeline."""
