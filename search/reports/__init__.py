"""What the commands report, as plain dictionaries that JSON can hold: read from the database, nothing is started.

Replicas and tasks are numbered from 1 here, as people say them; a cell keeps its place in the grid, from 0. Only
:mod:`~search.reports.plan` looks at the machine; none of the others imports torch or Ray.
"""
