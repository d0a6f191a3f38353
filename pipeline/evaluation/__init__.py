"""Evaluation: metrics, comparison, report."""
