"""The page of commands comes from the commands themselves."""

from tests.cli.commands_page import PAGE, page


def test_the_page_of_commands_says_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.cli.commands_page"
