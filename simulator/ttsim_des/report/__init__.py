"""Reports: the text table, one query's life, figures and the run directory."""
