"""Where artifacts may lie, and what is refused in a line."""

import os

import pytest

from search.artifacts import is_bucket, join, normal, parent
from search.artifacts.locations import split
from search.errors import BadInput


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/b//", "s3://bucket/a/b"),
        ("folder", os.path.join(os.getcwd(), "folder")),
        ("/a//b/../c/", "/a/c"),
    ],
)
def test_a_location_is_written_down_in_one_way(given: str, found: str) -> None:
    assert normal(given) == found == normal(found)


def test_places_in_places() -> None:
    assert join("/home", "artifacts", "run-1") == "/home/artifacts/run-1"
    assert join("/home", "/mnt", "run-1") == "/mnt/run-1"
    for place in ("s3://bucket", "s3://bucket/a"):
        assert join("/home", place, "run-1") == f"{place}/run-1"
        assert parent(f"{place}/run-1") == place
        assert is_bucket(place)
    assert split("s3://bucket") == ("bucket", "")
    assert split("s3://bucket/a/b") == ("bucket", "a/b/")


@pytest.mark.parametrize("location", ["gs://bucket", "file:///tmp/x", "s3:/bucket", "http://host/bucket", ""])
def test_refuses_other_urls(location: str) -> None:
    with pytest.raises(BadInput, match="give a folder, or s3://BUCKET/PREFIX") as caught:
        normal(location)
    assert repr(location) in str(caught.value)


@pytest.mark.parametrize("location", ["s3://key:s3cret@bucket/a", "s3://key:s3/cret@bucket", "gs://key:s3cret@bucket"])
def test_credentials_in_a_location_are_refused_and_not_printed(location: str) -> None:
    """Promise 8; no password is printed anywhere."""
    with pytest.raises(BadInput) as caught:
        normal(location)
    assert "cret" not in str(caught.value)
    assert "key" not in str(caught.value)
    assert ("AWS_ACCESS_KEY_ID" in str(caught.value)) == location.startswith("s3")


@pytest.mark.parametrize(
    "location", ["s3:/key:s3cret@bucket", "s3://bucket?secret=s3cret", "s3://bucket/a?secret=s3cret", "gs://b?x=s3cret"]
)
def test_what_may_be_a_secret_is_not_printed(location: str) -> None:
    with pytest.raises(BadInput, match=r"^artifacts at ") as caught:
        normal(location)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("location", ["s3://", "s3://a", "s3://bucket?x=1", "s3://my bucket", "s3://bücket/a"])
def test_refuses_what_cannot_name_a_bucket(location: str) -> None:
    with pytest.raises(BadInput, match="cannot name a bucket"):
        normal(location)


@pytest.mark.parametrize("location", ["s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/a?x", "s3://bucket/a\nb"])
def test_refuses_odd_prefixes(location: str) -> None:
    with pytest.raises(BadInput, match="cannot be a part of a prefix"):
        normal(location)
