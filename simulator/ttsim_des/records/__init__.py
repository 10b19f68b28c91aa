"""The record tables."""
