"""The scenario format: what a user says about one experiment, read, checked and written."""
