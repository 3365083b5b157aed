"""The page's files: each is served as what it is, asks nobody else for anything, and is there only once."""

import re
from importlib import resources

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from p2pgrid.gateway.page import HEADERS, TYPES, read_files, routes

FOLDER = resources.files("p2pgrid.gateway") / "page"
FILES = read_files(FOLDER)


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=routes()), backend="trio")


def text(name: str) -> str:
    return FILES[name].body.decode()


def test_every_file_of_the_folder_is_served() -> None:
    assert set(FILES) == {entry.name for entry in FOLDER.iterdir()}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_comes_as_what_it_is_and_lets_nothing_else_in(name: str, client: TestClient) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.content == FILES[name].body
    assert answer.headers["content-type"] == TYPES["." + name.split(".")[-1]]
    assert {key: answer.headers[key] for key in HEADERS} == HEADERS


def test_the_root_is_the_first_file_and_nothing_outside_the_folder_is_found(client: TestClient) -> None:
    assert client.get("/").content == FILES["index.html"].body
    for path in ("/page/", "/page/../page.py", "/page/%2e%2e/page.py", "/page/nothing.js"):
        assert client.get(path).status_code == 404, path


def test_what_a_browser_has_already_is_not_sent_again(client: TestClient) -> None:
    tag = client.get("/").headers["etag"]
    again = client.get("/", headers={"If-None-Match": f'W/{tag}, "another"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert again.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert client.get("/", headers={"If-None-Match": '"another"'}).status_code == 200


def test_the_policy_allows_this_host_and_no_code_in_markup() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_host(name: str) -> None:
    names = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text(name))
    assert set(names) <= {"http://www.w3.org"}, "only the name of SVG, which nobody asks"


def test_the_markup_has_no_code_and_no_style_of_its_own() -> None:
    markup = text("index.html")
    assert not re.findall(r"\s(?:style|on\w+)=", markup)
    assert not re.findall(r"<style|<script>|javascript:", markup)


@pytest.mark.parametrize("name", [name for name in sorted(FILES) if name.endswith(".js")])
def test_scripts_make_no_markup_out_of_text(name: str) -> None:
    assert not re.search(r"innerHTML\s*\+?=[^=]|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text(name))


def test_every_file_is_used_and_every_file_that_is_used_is_there() -> None:
    used = {"index.html"}
    for name in FILES:
        used |= set(re.findall(r"(?:src|href)=\"/page/([\w.]+)\"", text(name)))
        used |= set(re.findall(r"^import .* from \"\./([\w.]+)\";$", text(name), re.MULTILINE))
    assert used == set(FILES)
