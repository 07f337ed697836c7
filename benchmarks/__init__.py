"""Measure what the project promises about its speed, beside peers in the same run."""
