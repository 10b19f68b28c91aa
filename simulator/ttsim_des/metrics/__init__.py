"""Metrics: from record tables to numbers. Never sees a live object.

`summary.summarise` is the entry, `laws.check_laws` audits a run, `context.RunContext` is what both know beside the
tables.
"""
