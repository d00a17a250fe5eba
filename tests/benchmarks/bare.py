"""A task's grid as bare training loops: one single-threaded process a core, each cell alone, nothing else.

python tests/benchmarks/bare.py FILE

What ``grid.py`` writes into FILE says what to train; the best validation accuracy is printed.
"""

import itertools
import json
import multiprocessing
import os
import sys
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def train_cell(given: dict[str, Any], cell: dict[str, Any]) -> float:
    """The last epoch's validation accuracy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_file(given["data"])
    x, y = data["x"], data["y"]
    sizes = [x.shape[1], *given["hidden"], 10]
    layers = [nn.Linear(inputs, units) for inputs, units in itertools.pairwise(sizes)]
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))[:-1]
    optimizer = torch.optim.Adam(model.parameters(), lr=cell["learning_rate"])
    for _ in range(given["epochs"]):
        for batch in torch.randperm(len(x)).split(given["batch_size"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            with torch.no_grad():
                for alpha, layer in zip(cell["alpha"], layers, strict=True):
                    layer.weight.grad.add_(layer.weight.sign(), alpha=alpha)
            optimizer.step()
        with torch.no_grad():
            right = (model(data["validation_x"]).argmax(1) == data["validation_y"]).float().mean().item()
    return right


def main() -> None:
    with open(sys.argv[1]) as file:
        given = json.load(file)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        print(max(pool.starmap(train_cell, [(given, cell) for cell in given["cells"]], chunksize=1)))


if __name__ == "__main__":
    main()
