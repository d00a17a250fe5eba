"""A database's URL is read as it is meant; what is refused is in test_database.py."""

from search.urls import read_url


def test_an_at_sign_may_be_part_of_a_user_s_name() -> None:
    url, secrets = read_url("postgresql://bob@server:hu%40sh@host/db?user=x")
    assert (url.username, url.password, url.host, secrets) == ("bob@server", "hu@sh", "host", {})
