"""The tree of errors and the page that explains it are kept equal."""

from __future__ import annotations

import re
from pathlib import Path

from mixer import errors
from mixer.errors import ConfigError, MixerError
from service import errors as service_errors

ROW = re.compile(r"^\| `([a-z-]+)` \| `(\w+)` \| (.+) \| (.+) \|$", re.MULTILINE)
WHOLE_PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
PAGE, SERVICE_PAGE = WHOLE_PAGE.split("## Of the service")


def defined() -> dict[str, type[MixerError]]:
    """Return every error class that the library defines, by name."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return {found.__name__: found for found in classes if issubclass(found, MixerError)}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.__dict__.get("code") for error in defined().values()]  # its own, not inherited
    assert None not in codes
    assert len(set(codes)) == len(codes)


def test_the_page_explains_exactly_the_errors_that_there_are_in_their_order() -> None:
    documented = [(code, name) for code, name, _, _ in ROW.findall(PAGE)]
    assert documented == [(error.code, name) for name, error in defined().items()]


def test_the_page_explains_the_errors_of_the_service_with_the_hints_that_it_sends() -> None:
    classes = [value for value in vars(service_errors).values() if isinstance(value, type)]
    own = [found for found in classes if issubclass(found, service_errors.ServiceError)]
    assert ROW.findall(SERVICE_PAGE) == [
        (e.code, e.__name__, row[2], e.hint) for e, row in zip(own, ROW.findall(SERVICE_PAGE), strict=True)
    ]
    assert not {error.code for error in own} & {error.code for error in defined().values()}


def test_no_error_is_defined_outside_the_tree() -> None:
    def below(error: type[MixerError]) -> set[type[MixerError]]:
        return {error}.union(*(below(child) for child in error.__subclasses__()))

    import mixer.dataset
    import mixer.walk.walk  # noqa: F401

    library = {error for error in below(MixerError) if error.__module__.startswith("mixer")}
    assert library == set(defined().values())


def test_a_config_error_lists_its_problems_one_to_a_line() -> None:
    assert ConfigError("one thing").problems == ("one thing",)
    error = ConfigError(["one thing", "another"])
    assert error.problems == ("one thing", "another")
    assert str(error) == "one thing\nanother"
