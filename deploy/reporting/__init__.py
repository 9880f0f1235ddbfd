"""Runs and evaluations side by side: tables and plots."""
