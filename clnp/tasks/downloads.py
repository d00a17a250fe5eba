"""Getting a data set that is not there: its module's way, and a check of what came."""

from pathlib import Path
from urllib.error import URLError

from clnp.errors import DataUnavailable
from clnp.tasks import cifar, vision

__all__ = ["download"]


def download(dataset: str, data_dir: str | None = None) -> Path:
    """Get a data set with torchvision's downloader, check it, and return the folder it is in.

    Raises:
        DataUnavailable: It is not one that is downloaded, no mirror answered, the folder cannot be written, or what
            came is not the known data set.
    """
    names = {name: known.name for name, known in vision.VISION.items()} | {name: name.upper() for name in cifar.CIFAR}
    if dataset not in names:
        raise DataUnavailable(f"{dataset!r} is not downloaded; the data sets that are: {', '.join(names)}")
    module, folder = cifar if dataset in cifar.CIFAR else vision, vision.data_folder(data_dir)
    try:
        module.fetch(dataset, folder)
    except (RuntimeError, URLError, OSError) as error:
        raise DataUnavailable(f"{names[dataset]} could not be put in {folder}: {error}") from error
    module.check(dataset, folder)
    return folder
