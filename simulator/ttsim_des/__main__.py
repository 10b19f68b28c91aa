"""`python -m ttsim_des`: the command line."""

from ttsim_des.cli import main

main(prog_name="ttsim-des")
