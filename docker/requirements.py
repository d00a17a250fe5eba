"""Write what an image installs before the project itself: requirements.txt and pins.txt, from pyproject.toml and
constraints.txt of the current folder.

    python3 requirements.py VARIANT EXTRA,EXTRA

VARIANT cpu pins torch to its build for the CPU, so that an installation without it fails instead of bringing CUDA;
cuda leaves the ordinary build.
"""

import re
import sys
import tomllib
from pathlib import Path


def main(variant: str, extras: str) -> None:
    if variant not in ("cpu", "cuda"):
        sys.exit(f"VARIANT is {variant!r}; give cpu or cuda")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    wanted = [extra for extra in extras.split(",") if extra]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        sys.exit(f"EXTRAS names {', '.join(unknown)}, which pyproject.toml does not have; known: {', '.join(known)}")
    requirements = [*project["dependencies"], *(each for extra in wanted for each in known[extra])]
    Path("requirements.txt").write_text("".join(f"{each}\n" for each in requirements), encoding="utf-8")
    pins = Path("constraints.txt").read_text(encoding="utf-8")
    if variant == "cpu":
        pins, count = re.subn(r"(?m)^(torch==[^+\s]+)$", r"\1+cpu", pins)
        if count != 1:
            sys.exit(f"constraints.txt pins torch {count} times; once is needed")
    Path("pins.txt").write_text(pins, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give VARIANT and EXTRAS: requirements.py cpu cluster,postgres,s3")
    main(*sys.argv[1:])
