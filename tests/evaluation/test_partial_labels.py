import pytest

from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.partial_labels import write_parts


@pytest.fixture
def quiz(tmp_path):
    """Twenty cases of two subtypes; nobody opens the files."""
    for number in range(20):
        part = tmp_path / "quiz" / "train" / f"subtype{number % 2}"
        part.mkdir(parents=True, exist_ok=True)
        for end in ("_0000", ""):
            (part / f"quiz_{number % 2}_{number:03}{end}.nii.gz").write_bytes(b"x")
    return tmp_path / "quiz"


@pytest.mark.parametrize(
    ("rest", "masks", "subtypes", "train"),
    [("nothing", 12, 12, 8), ("mask", 20, 12, 16), ("subtype", 12, 20, 16)],
)
def test_half_of_the_training_cases_keep_everything(quiz, tmp_path, rest, masks, subtypes, train):
    write_parts(quiz, tmp_path / "parts", {"a": rest})
    cases = read_cases("nnunet", tmp_path / "parts" / "a")
    assert sum(case.mask is not None for case in cases) == masks
    assert sum(case.subtype is not None for case in cases) == subtypes
    ((names, validation),) = read_official_folds("nnunet", tmp_path / "parts" / "a")
    assert (len(names), len(validation)) == (train, 4)
    held_out = [case for case in cases if case.name in validation]
    assert all(case.mask is not None and case.subtype is not None for case in held_out)
    full = [c for c in cases if c.name in names and c.mask and c.subtype is not None]
    assert sorted(case.subtype for case in full) == [0] * 4 + [1] * 4


def test_what_is_there_is_kept(quiz, tmp_path):
    write_parts(quiz, tmp_path / "parts", {"a": "mask"})
    csv = tmp_path / "parts" / "a" / "subtypes.csv"
    csv.write_text("Names,Subtype\n")
    write_parts(quiz, tmp_path / "parts", {"a": "mask"})
    assert csv.read_text() == "Names,Subtype\n"


def test_a_part_that_was_made_otherwise_is_refused(quiz, tmp_path):
    write_parts(quiz, tmp_path / "parts", {"a": "mask"})
    with pytest.raises(UsageError, match=r"parts\.a=subtype: .*a was made with mask: give"):
        write_parts(quiz, tmp_path / "parts", {"a": "subtype"})


def test_other_words_are_refused(quiz, tmp_path):
    with pytest.raises(UsageError, match="choose one of nothing, mask, subtype"):
        write_parts(quiz, tmp_path / "parts", {"a": "half"})
