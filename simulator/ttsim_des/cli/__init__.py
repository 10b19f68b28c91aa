"""The command line, a thin layer over `ttsim_des.api`."""

from ttsim_des.cli.group import main

__all__ = ["main"]
