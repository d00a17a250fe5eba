"""Runs as jobs of a Ray cluster, through the job server of its head: submitted, followed, listed and stopped."""

__all__: list[str] = []
