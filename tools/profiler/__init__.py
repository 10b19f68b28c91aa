"""The parts of tools/profile_gpu.py: which points, how they are timed, kept, refined and written."""
