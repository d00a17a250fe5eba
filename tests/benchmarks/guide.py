"""A task's grid as Ray Tune's guide shows it: one trial a cell, a DataLoader, L1 through autograd.

python tests/benchmarks/guide.py FILE

What ``grid.py`` writes into FILE says what to train; the best validation accuracy is printed.
"""

import itertools
import json
import sys
import tempfile
from typing import Any

import torch
from ray import tune
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train_cell(config: dict[str, Any]) -> None:
    """A trial: everything it needs is made in it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given, cell = config["given"], config["cell"]
    data = load_file(given["data"])
    train = DataLoader(TensorDataset(data["x"], data["y"]), batch_size=given["batch_size"], shuffle=True)
    validation = DataLoader(TensorDataset(data["validation_x"], data["validation_y"]), batch_size=1024)
    sizes = [data["x"].shape[1], *given["hidden"], 10]
    layers = [nn.Linear(inputs, units) for inputs, units in itertools.pairwise(sizes)]
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))[:-1]
    optimizer = torch.optim.Adam(model.parameters(), lr=cell["learning_rate"])
    for _ in range(given["epochs"]):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            for alpha, layer in zip(cell["alpha"], layers, strict=True):
                loss = loss + alpha * layer.weight.abs().sum()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in validation)
        tune.report({"accuracy": right / len(data["validation_y"])})


def main() -> None:
    with open(sys.argv[1]) as file:
        given = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(train_cell, {"cpu": 1}),
            param_space={"given": given, "cell": tune.grid_search(given["cells"])},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        best = tuner.fit().get_best_result("accuracy", "max")
        print(best.metrics["accuracy"])


if __name__ == "__main__":
    main()
