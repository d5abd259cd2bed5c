"""`docs/errors.md` says what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

REMEDY = r": |; |\(|give |_hint|which holds|had to be left out"
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def listed():
    spec = importlib.util.spec_from_file_location("build_errors", DOCS / "build_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_code(listed):
    written = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert written == listed.page(), "run `make reference`"


def test_messages_are_found_where_they_are_raised(listed):
    texts = {message.text: message for message in listed.messages()}
    helped = texts["{path} is truncated or damaged: copy it again from its source"]
    assert (helped.where, helped.code) == ("data/nifti.py", 1)
    named = texts["{missing} is not set: give {missing}=VALUE"]
    assert (named.where, named.code) == ("command.py", 2)
    assert len(texts) > 150


def test_every_message_names_a_remedy(listed):
    """After a colon or a semicolon; messages that pass another one on have it from there."""
    for message in listed.messages():
        passes_on = message.text.startswith("{") and message.text.count("}") == 1
        if message.code is not None and not passes_on:
            assert re.search(REMEDY, message.text), message
