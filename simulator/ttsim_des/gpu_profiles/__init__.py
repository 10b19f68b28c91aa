"""GPU profiles as files: made from others' tables, described, examined, compared, written."""
