"""The shipped experiments, listed."""

import json
import subprocess
import sys
from pathlib import Path

from search.reports.experiments import experiments


def test_every_shipped_experiment_has_its_description():
    listed = {entry["experiment"]: entry["description"] for entry in experiments()["experiments"]}
    assert "quickstart" in listed
    assert all(listed.values())


def test_a_list_of_files_needs_no_database():
    script = """
import json, sys
from search.reports.experiments import experiments
experiments()
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "ray", "optuna", "sqlalchemy", "numpy"}
