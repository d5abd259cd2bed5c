"""The documentation says what is so: links lead somewhere, and every command in it runs.

The `sh` blocks of README.md and docs/ are run in a folder of their own, on phantoms and with a tiny
network, each distinct command once; of `make` and its target, `make -n` is. Of what stands below a
line `# needs ...`, and of commands within a sentence, only the configuration is composed.
"""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from commands import call
from extras import PACKAGES
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import UNKNOWN, Evidence

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = {
    "plan": "small",
    "plan.base_channels": "8",
    "plan.spacing_mm": "[6,4,4]",
    "plan.patch_size": "[16,32,32]",
    "trainer": "cpu",
    "trainer.max_epochs": "1",
    "sampling.steps_per_epoch": "1",
    "sampling.workers": "0",
    "sampling.validation_cases": "1",
    "workers": "1",
    "audit": "false",
    "paths.outputs": "outputs",
}
SMALL = {"num_train": "5", "num_validation": "0", "num_test": "1", "num_cases": "3", "workers": "1"}
ELSEWHERE = {  # pages whose commands another test runs, and asserts that it runs them all
    "docs/how-to/deployment.md": "tests/interop/test_export.py",
}
OVERRIDES = {
    "train": TINY,
    "predict": {"preset": "single"},
    "phantom": SMALL,
    "preprocess": {key: TINY[key] for key in TINY if key.startswith(("plan", "workers", "paths"))},
    "sweep": TINY | {"sweep.trials": "1"},
}
TRAINED = "python train.py experiment=balanced data=quiz data.root=DIR output_dir=runs/balanced"
FIRST = {  # what a command with this part builds on
    "BUNDLE": TRAINED,
    "RUN": TRAINED,
    "runs/balanced": TRAINED,
    "predictions=predictions": "python predict.py model=runs/balanced/bundle input=DIR/test "
    "output_dir=predictions",
    "runs/balanced,evaluation": "python -m pancreas_mtl.evaluate predictions=predictions "
    "references=MASKS output_dir=evaluation",
    "DATASET": "python -m pancreas_mtl.convert from=quiz to=nnunet root=DIR "
    "output_dir=Dataset172_PancreasQuiz",
}
SERIES = "1.2.840.113619.2.55"  # in docs/how-to/dicom.md
SHELL = ("sh", "bash")
EXTRA_OF = {  # what a command with this part asks for
    "FOLDER": "dicom",
    "pancreas_mtl.sweep": "sweep",
    "tensorboard": "tensorboard",
    "submitit": "slurm",
}
OWN = {  # what the reader of own-head.md and of own-loss.md adds, and what stands for it here
    "head=pancreas": "head=gap",
    "head=lesion,pancreas": "head=lesion,gap",
    "loss.volume_weight": "loss.subtype_weight",
}
EXTRA = re.compile(r"pip install (?:'pancreas-mtl|-e '\.)\[([a-z,-]+)\]'")


class Command(NamedTuple):
    """One command of a page; `needs` is what it asks for beyond this repository and a CPU."""

    page: str
    text: str
    needs: str | None


def fenced(page: Path) -> list[tuple[str, str]]:
    """Kind and content of every fenced block, also of those within a list."""
    text = page.read_text()
    return re.findall(r"^ *```([^\n]*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[str]:
    return [content for kind, content in fenced(page) if kind in kinds]


def commands_of(page: Path) -> list[Command]:
    found = []
    for block in blocks(page, *SHELL):
        needs = None
        for line in map(str.strip, block.replace("\\\n", " ").splitlines()):
            if line.startswith("# needs "):
                needs = line.removeprefix("# needs ")
            elif line and not line.startswith(("#", "for ", "done")):
                text = " ".join(shlex.split(line, comments=True, posix=False))
                found.append(Command(str(page.relative_to(ROOT)), text, needs))
    return found


COMMANDS = [command for page in PAGES for command in commands_of(page)]
SESSIONS = [
    session
    for page in PAGES
    for block in blocks(page, "console")
    for session in re.findall(r"^\$ python (\S+)\.py (.*)\n(.*)$", block, re.MULTILINE)
]
INLINE = sorted(
    {
        " ".join(text.split())
        for page in PAGES
        for text in re.findall(
            r"`(python (?:train|predict|-m pancreas_mtl)[^`]*)`", page.read_text()
        )
    }
)


def lacks(text: str) -> str | None:
    """The extra that a command asks for and that is not installed."""
    extras = [extra for part, extra in EXTRA_OF.items() if part in text]
    missing = (e for e in extras if importlib.util.find_spec(PACKAGES[e][0]) is None)
    return next(missing, None)


def split(text: str) -> tuple[str, list[str]]:
    """The name of its configuration, and its overrides; `-m` falls away."""
    words = shlex.split(text)[1:]
    name = words[1].removeprefix("pancreas_mtl.") if words[0] == "-m" else words[0][: -len(".py")]
    words = words[2:] if words[0] == "-m" else words[1:]
    return name, [word for word in words if "=" in word]


def composes(text: str) -> None:
    """The command's keys exist, and each of the choices of groups that it names."""
    name, overrides = split(text.replace(" ...", ""))
    if name.startswith("tests/"):
        assert (ROOT / f"{name}.py").exists()
        return
    given = {one.split("=")[0].lstrip("+~") for one in overrides}
    if name == "audit" and "data" not in given:
        overrides.append("data=quiz")
    values = [(key, list_of(value)) for key, value in (one.split("=", 1) for one in overrides)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        groups = [choices for key, choices in values if (ROOT / "conf" / key).is_dir()]
        for turn in range(max(map(len, groups), default=1)):
            chosen = [f"{key}={choices[min(turn, len(choices) - 1)]}" for key, choices in values]
            compose(name, overrides=chosen, return_hydra_config=True)


def list_of(value: str) -> list[str]:
    """The choices of a sweep, `a,b`, or of a line that lists what there is, `a|b`."""
    if "|" in value:
        return value.split("|")
    return [value] if value[:1] in "[{'\"" or "(" in value else value.split(",")


# What is checked without running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_index():
    text = (ROOT / "docs" / "README.md").read_text() + (ROOT / "README.md").read_text()
    for page in PAGES:
        if page.name != "README.md":
            assert page.name in text, f"{page} is not linked from docs/README.md"


@pytest.mark.slow
@pytest.mark.parametrize("text", INLINE)
def test_a_command_within_a_sentence_composes(text):
    text = text.replace("--help", "").replace("\\|", "|")
    GlobalHydra.instance().clear()
    composes(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_in_blocks_that_are_run(page):
    for kind, block in fenced(page):
        if kind not in (*SHELL, "console"):
            assert not re.search(r"^ *(\$|python|make|torchrun|pip) ", block, re.MULTILINE), block
    for command in commands_of(page):
        assert "..." not in command.text, command.text


@pytest.mark.parametrize(("module", "arguments", "answer"), SESSIONS)
def test_a_session_on_the_terminal_is_as_shown(module, arguments, answer):
    said = call(module, *arguments.split()).last_line
    assert re.fullmatch(re.escape(answer).replace(re.escape("..."), ".*"), said)


def test_scripts_of_the_docs_are_there_and_compile():
    named = {
        name for page in PAGES for name in re.findall(r"python (docs/\S+\.py)", page.read_text())
    }
    assert "docs/examples/onnx_case.py" in named
    for name in named:
        compile((ROOT / name).read_text(), name, "exec")


def test_python_examples_are_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(textwrap.dedent(block), str(page), "exec")


def test_the_reference_is_current():
    """`make reference` writes it anew."""
    path = ROOT / "docs" / "build_reference.py"
    spec = importlib.util.spec_from_file_location("build_reference", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, text in script.build().items():
        page = ROOT / "docs" / "reference" / name
        assert page.read_text() == text, f"{page} is old: run `make reference`"


def test_there_are_commands():
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "docs/tutorial.md", "docs/how-to/deployment.md"} <= pages
    assert len({command.text for command in COMMANDS}) > 20


@pytest.mark.slow
@pytest.mark.parametrize("text", sorted({one.text for one in COMMANDS if one.needs}))
def test_what_needs_more_is_composed(text):
    if extra := lacks(text):
        pytest.skip(f"needs the extra {extra}")
    text = re.sub(r"^(torchrun .*?|srun python) (?=train\.py)", "python ", text)
    for name, stand_in in OWN.items():
        text = text.replace(name, stand_in)
    if text.startswith("make "):
        subprocess.run(["make", "-n", *text.split()[1:]], cwd=ROOT, check=True)
    elif text.startswith("python ") and not text.startswith("python docs/"):
        GlobalHydra.instance().clear()
        composes(text)


# What runs


class Sandbox:
    """A folder to run commands in, and what their words in capitals stand for."""

    def __init__(self, folder: Path, quiz: Path) -> None:
        self.folder, self.quiz = folder, quiz
        self.done: set[str] = set()

    def path(self, word: str) -> str:
        """What a word in capitals stands for."""
        ct = next((self.quiz / "test").glob("*.nii.gz"))
        known = {
            "DIR": self.quiz,
            "DATASET": self.folder / "Dataset172_PancreasQuiz",
            "MASKS": self.quiz / "references",
            "BUNDLE": self.folder / "runs/balanced/bundle",
            "PREDICTIONS": self.folder / "predictions",
            "CT": ct,
            "IMAGES": self.quiz / "test",
            "RUN": self.folder / "runs/balanced",
            "FOLDER": self.folder / "series",
        }
        for name, path in known.items():
            word = re.sub(rf"(?<![\w/]){name}(?![\w.])", str(path), word)
        return word

    def run(self, text: str) -> None:
        """Run a command after what it builds on, unless it has been run before."""
        if text in self.done:
            return
        self.done.add(text)
        for part, first in FIRST.items():
            if part in text:
                self.run(first)
        words = [self.path(word) for word in shlex.split(text)]
        if words[0] == "tar":
            subprocess.run(words, check=True, cwd=self.folder)
            return
        if words[0] == "eval":
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            shell = ["bash", "-c", text]
            subprocess.run(shell, check=True, cwd=ROOT, env=os.environ | {"PATH": path})
            return
        assert words[0] == "python", f"{text}: tests/test_docs.py does not know how to run this"
        module, arguments = words[1].removesuffix(".py"), words[2:]
        if module == "-m":
            module, *arguments = arguments
        finished = call(module, *self.tiny(module.rpartition(".")[2], arguments))
        assert finished.code == 0, f"{text}: {finished.stderr[-2000:]}"

    def tiny(self, name: str, arguments: list[str]) -> list[str]:
        """The arguments, with overrides that make the command small."""
        flags = [one for one in arguments if "=" not in one]
        given = dict(one.split("=", 1) for one in arguments if "=" in one)
        smaller = OVERRIDES.get(name, {})
        if name == "phantom":
            smaller = {key: value for key, value in SMALL.items() if key in given}
        if "--config-path" in flags:  # of a run that was small
            smaller = {}
        if "plan.bundle" in given:
            smaller = {key: value for key, value in TINY.items() if not key.startswith("plan")}
        if "fold" in given and "-m" in flags:
            smaller = smaller | {"fold": "0,1"}
        if name == "evaluate" and "runs" in given:
            smaller = smaller | {"missing": "skip"}  # the cases of the other folds
        again = {"overwrite": "true"} if name in ("train", "predict", "convert") else {}
        return [*flags, *(f"{key}={value}" for key, value in (given | smaller | again).items())]


@pytest.fixture(scope="module")
def sandbox(tiny_quiz, tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp("docs"), tiny_quiz)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_runs(page, sandbox, request, monkeypatch):
    """In any order: what a page builds on and does not say itself is in FIRST."""
    if (name := str(page.relative_to(ROOT))) in ELSEWHERE:
        assert (ROOT / ELSEWHERE[name]).exists()
        return
    if "FOLDER" in page.read_text() and not lacks("FOLDER"):
        request.getfixturevalue("write_series")(sandbox.folder / "series", uid=SERIES, slices=8)
    monkeypatch.chdir(sandbox.folder)
    extras = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    skipped = set()
    for command in commands_of(page):
        if command.needs:
            continue
        if extra := lacks(command.text):
            skipped.add(extra)
        elif command.text.startswith("make "):
            make = subprocess.run(["make", "-n", *command.text.split()[1:]], cwd=ROOT, check=False)
            assert make.returncode == 0, command.text
        elif named := EXTRA.search(command.text):
            assert set(named[1].split(",")) <= set(extras), command.text
        else:
            sandbox.run(command.text)
    if skipped:
        pytest.skip(f"the rest ran; needs the extra {', '.join(sorted(skipped))}")


# The examples in Python


def python_blocks(name: str) -> list[str]:
    return [textwrap.dedent(block) for block in blocks(ROOT / name, "python")]


def test_the_predictor_of_the_readme_answers(bundle):
    (block,) = python_blocks("README.md")
    image = np.random.default_rng(0).normal(50, 50, (8, 20, 24)).astype(np.float32)
    names = {"image_hu": image}
    exec(block.replace("runs/balanced/bundle", str(bundle)), names)
    assert names["prediction"].labels.shape == image.shape
    assert names["prediction"].subtype_probabilities.sum() == pytest.approx(1)


def test_the_service_of_the_how_to_answers(bundle):
    (block,) = python_blocks("docs/how-to/deployment.md")
    names = {}
    exec(block.replace("BUNDLE", str(bundle)), names)
    labels, probabilities = names["answer"](np.zeros((4, 20, 24), np.float32), (3.0, 0.7, 0.7))
    assert labels.shape == (4, 20, 24)
    assert probabilities.shape == (3,)


def test_the_seg_of_the_how_to_is_read(bundle, write_series, tmp_path):
    arguments = f"model={bundle} input={write_series(tmp_path / 'in')} output_format=dicom_seg"
    assert call("predict", *arguments.split(), f"output_dir={tmp_path / 'out'}").code == 0
    (block,) = python_blocks("docs/how-to/dicom.md")
    (seg,) = (tmp_path / "out").glob("*.seg.dcm")
    names = {}
    exec(re.sub(r"predictions/.*\.dcm", str(seg), block), names)
    assert names["mask"].array.shape[1:] == (7, 9)
    assert set(np.unique(names["mask"].array)) <= {0, 1, 2}


def test_the_head_of_the_how_to_is_one(plan, monkeypatch):
    monkeypatch.setattr("pancreas_mtl.models.classifiers.HEADS", dict(HEADS))
    names: dict[str, type] = {}
    exec(python_blocks("docs/how-to/own-head.md")[0], names)
    torch.manual_seed(0)
    config = NetworkConfig(head="gap", stages=(0, 1), hidden=0, dropout=0.0)
    network = MultitaskUNet(plan, config).eval()
    network.subtype_head = names["PancreasHead"](
        plan,
        stages=(0, 1),
        hidden=0,
        dropout=0.0,
    )
    left, right = torch.randn(2, 1, 1, 8, 16, 16)
    with torch.no_grad():
        parts = [network(one).evidence for one in (left, right)]
        both = Evidence(*(a + b for a, b in zip(*parts, strict=True)))
        assert network.classify(both).shape == (1, 3)
    assert parts[0].sums.shape == parts[0].weights.shape == (1, sum(plan.channels[:2]))
    assert (parts[0].weights > 0).all()


def test_the_loss_of_the_how_to_is_one():
    names: dict[str, Callable[..., torch.Tensor]] = {}
    exec(python_blocks("docs/how-to/own-loss.md")[0], names)
    logits = torch.full((1, 3, 2, 2, 2), -20.0)
    logits[:, 2] = 20.0  # lesion in all 8 voxels
    mask = torch.full((1, 1, 2, 2, 2), 2, dtype=torch.int16)
    assert names["lesion_volume_loss"](logits, mask).item() == pytest.approx(0, abs=1e-6)
    mask[0, 0, 0] = 1  # in 4 of them: 4 too many
    assert names["lesion_volume_loss"](logits, mask).item() == pytest.approx(4 / 104, rel=1e-5)
    unknown = torch.full_like(mask, UNKNOWN)
    loss = names["lesion_volume_loss"](logits.requires_grad_(), unknown)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
