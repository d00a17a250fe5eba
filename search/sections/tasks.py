"""The section of the tasks."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from clnp.tasks.sizes import (
    DATASETS,
    SPLIT_CIFAR,
    VIEWED,
    Sizes,
    at_most,
    class_counts,
    dataset_sizes,
    split_cifar_sizes,
    split_sizes,
    views_sizes,
)
from search.fields import CLASSES, Classes, Count, Options, choice, is_own, or_own, refusal
from search.sections.base import Section, of_own, refuse_given

__all__ = ["Tasks"]

_MADE_FROM = {"split-cifar": SPLIT_CIFAR, "views": VIEWED}
_SIZES_OF = {"split-cifar": split_cifar_sizes, "views": views_sizes}

_ClassOrder = Literal["label", "shuffled"]


class Tasks(Section):
    """The sequence of tasks."""

    kind: Annotated[str, or_own("permuted", "split", *_MADE_FROM)] = Field(
        default="permuted",
        description="How tasks come about: permuted gives each its own order of a data set's pixels, split gives each "
        "its own classes; split-cifar is CIFAR-10, then CIFAR-100 by ten classes a task; views is MNIST and "
        "Fashion-MNIST in turns, upright, turned and inverted; module:function is a function of your own that returns "
        "them.",
    )
    dataset: Annotated[str, choice(DATASETS)] | None = Field(
        default=None,
        validate_default=True,
        description=f"The data set of permuted and split: {', '.join(DATASETS)}. Left out: digits.",
    )
    classes: Classes | None = Field(
        default=None, validate_default=True, description="Of split: classes a task, from 2."
    )
    order: Annotated[_ClassOrder, choice(_ClassOrder)] | None = Field(
        default=None,
        validate_default=True,
        description="Of split and split-cifar: classes come in the order of their labels (label), or each replica's "
        "seed draws it (shuffled; CIFAR-10 keeps its labels). Left out: label.",
    )
    samples: Count | None = Field(
        default=None,
        description="At most so many training samples of a task, drawn by the seed, its validation split among them. "
        "Left out: all.",
    )
    count: Count = Field(
        default=5,
        validate_default=True,
        description="How many tasks are learnt, one after another. May grow later.",
    )
    options: Options | None = Field(default=None, description="What a function of your own is called with.")

    @property
    def own(self) -> bool:
        """Whether a person's own function makes them."""
        return is_own(self.kind)

    @property
    def title(self) -> str:
        """What they are made from, for people: the data sets, or the function."""
        return " and ".join(self.datasets) or self.kind

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that they are made from, however many tasks there are; none of a person's own."""
        return _MADE_FROM.get(self.kind, () if self.dataset is None else (self.dataset,))

    def sizes(self, seed: int) -> tuple[Sizes, ...]:
        """The sizes of every task of the replica with this seed, or of the first where all are alike; not of own ones.

        Before a validation split is carved from a training split.
        """
        return tuple(at_most(sizes, self.samples) for sizes in self._sizes(seed))

    def _sizes(self, seed: int) -> tuple[Sizes, ...]:
        """Of all their samples."""
        if self.kind in _SIZES_OF:
            return _SIZES_OF[self.kind](self.count)
        dataset = str(self.dataset)
        if self.classes is not None:
            return split_sizes(dataset, classes=self.classes, count=self.count, order=self.order or "label", seed=seed)
        whole = dataset_sizes(dataset)
        return (whole._replace(shape=(whole.inputs,)),)

    def train_sizes(self) -> set[int]:
        """Training samples that a task has; where the seed draws its classes, the least that it can have."""
        if self.classes is not None and self.order == "shuffled":
            least = sum(sorted(class_counts(str(self.dataset), test=False))[: self.classes])
            return {least if self.samples is None else min(least, self.samples)}
        return {sizes.train for sizes in self.sizes(0)}

    @field_validator("dataset")
    @classmethod
    def _dataset_of_ours(cls, dataset: str | None, info: ValidationInfo) -> str | None:
        if "kind" not in info.data:
            return dataset
        if is_own(info.data["kind"]):
            refuse_given(dataset, "your function brings its own data")
            return None
        if info.data["kind"] in _MADE_FROM:
            made_from = " and ".join(_MADE_FROM[info.data["kind"]])
            refuse_given(dataset, f"{info.data['kind']} is made from {made_from}")
            return None
        return dataset or "digits"

    @field_validator("classes")
    @classmethod
    def _classes_of_split(cls, classes: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("kind") == "split":
            if classes is None:
                raise refusal(CLASSES)
        elif "kind" in info.data:
            refuse_given(classes, "it belongs to kind: split")
        return classes

    @field_validator("order")
    @classmethod
    def _order_of_classes(cls, order: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("kind") in ("split", "split-cifar"):
            return order or "label"
        if "kind" in info.data:
            refuse_given(order, "it belongs to kind: split and kind: split-cifar")
        return order

    @field_validator("samples")
    @classmethod
    def _samples_of_ours(cls, samples: int | None, info: ValidationInfo) -> int | None:
        if is_own(info.data.get("kind", "")):
            refuse_given(samples, "your function brings its own data")
        return samples

    @field_validator("count")
    @classmethod
    def _enough_classes(cls, count: int, info: ValidationInfo) -> int:
        kind = info.data.get("kind")
        try:
            if kind in _SIZES_OF:
                _SIZES_OF[kind](count)
            elif kind == "split" and {"dataset", "classes"} <= info.data.keys():
                split_sizes(info.data["dataset"], classes=info.data["classes"], count=count)
        except ValueError as error:
            raise refusal(str(error)) from None
        return count

    @field_validator("options")
    @classmethod
    def _options_of_own(cls, options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return of_own(options, info)
