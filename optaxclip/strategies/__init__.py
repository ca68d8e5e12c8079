"""The named strategies, one file per family or paper."""
