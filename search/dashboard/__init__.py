"""Optuna's dashboard: what our studies carry for it, and the server that shows it."""
