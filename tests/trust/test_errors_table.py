"""`docs/errors.md` says what the code says."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

REMEDY = re.compile(
    r"\b(give|use|choose|check|remove|rename|free|restore|mend|write|save|convert|copy|crop|export"
    r"|resample|train|try|lower|raise|predict|make|look|keep|leave|go on|download|wait|draw|close"
    r"|plan again|pip install|see|start anew|split|anonymise|again|repeat|read them)\b",
    re.IGNORECASE,
)
DEMAND = re.compile(
    r"\b(must be|has to be|only|needs?|are given as|reads one|has no values|each case)\b"
    r"|\b(has|have|holds|runs|is) .*\b(and|or|to|from)\b"
    r"|\{_?(hint|has|suggestion|demand|accepted|listed)"
)
"""What is wanted, where that says what to do."""
PASSES_ON = re.compile(
    r"\{(error|outcome|next|first|_misfit|_last_line|failures|remedy)\}|left out$"
)
"""Messages that pass another one on, which has its own remedy."""
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def listed():
    spec = importlib.util.spec_from_file_location("build_errors", DOCS / "build_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.messages = cache(module.messages)
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


def test_every_message_says_what_to_do(listed):
    """After what is wrong come a remedy, or what is wanted."""
    for message in listed.messages():
        if message.code is not None and not PASSES_ON.search(message.text):
            *_, wanted = re.split(r"[:;] |\)", message.text, maxsplit=1)
            assert REMEDY.search(wanted) or DEMAND.search(wanted), message


def test_messages_that_are_no_errors_are_listed(listed):
    texts = {message.text: message.code for message in listed.messages()}
    assert texts["sform and qform disagree ({problem}); the sform counts"] is None
    assert texts["{group}={name}: no such choice{hint}; choose one of: {options}"] == 2
    assert any(text.startswith("{path}: memory ran out during {name}: free") for text in texts)
    assert any("keys are given as" in text for text in texts)
    assert listed.findings()["shifted_hu"] == ["{reason}: shifted by 1024?"]
