"""Write docs/reference/ from the docstrings and from conf/: `python docs/build_reference.py`.

The suite compares the pages with what this writes, so they cannot grow old.
"""

import ast
import re
import textwrap
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
API = {  # module: names, in the order of the page; None for all that are public
    "inference/predictor": ["Predictor"],
    "types": None,
    "errors": None,
    "inference/bundle": ["Bundle", "load_bundle", "save_bundle", "bundle_digest"],
    "inference/calibration": ["Calibration"],
    "data/images": ["read_image", "read_mask", "write_mask", "find_images"],
    "inference/pictures": ["mosaic", "save_png"],
    "inference/pipeline": ["predict_cases", "nifti_source"],
    "evaluation/evaluate": ["evaluate"],
    "models/network": ["NetworkConfig", "MultitaskUNet"],
    "models/classifiers": ["SubtypeHead"],
    "interop/export": ["export_bundle"],
    "interop/convert": ["convert_dataset"],
}
SECTIONS = ("Args", "Returns", "Raises", "Yields")


def python_page():
    """The page of the Python API."""
    lines = [
        "# Python API",
        "",
        "What notebooks and services use. Everything else is documented where it is, in the",
        "modules; `pancreas_mtl/__init__.py` is the tour. *Made by `docs/build_reference.py`.*",
    ]
    for module, names in API.items():
        tree = ast.parse((ROOT / "pancreas_mtl" / f"{module}.py").read_text())
        dotted = f"pancreas_mtl.{module.replace('/', '.')}"
        lines += ["", f"## {dotted}", "", *markdown(ast.get_docstring(tree) or "")]
        found = {node.name: node for node in tree.body if hasattr(node, "name")}
        missing = set(names or []) - set(found)
        assert not missing, f"{dotted} has no {missing}: mend API in docs/build_reference.py"
        for name in names or [name for name in found if not name.startswith("_")]:
            lines += entry(found[name])
    return "\n".join(lines) + "\n"


def entry(node, owner=""):
    """A class with its public methods, or a function."""
    if not isinstance(node, ast.ClassDef):
        head = f"{owner}{node.name}{signature(node)}"
        return ["", f"### `{head}`", "", *markdown(ast.get_docstring(node) or "")]
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
    init = [one for one in methods if one.name == "__init__"]
    lines = ["", f"### `{node.name}{signature(init[0]) if init else ''}`", ""]
    lines += markdown(ast.get_docstring(node) or "")
    fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign | ast.Assign)]
    if fields:
        lines += ["", "```", *fields, "```"]
    for method in methods:
        if method.name == "__call__" or not method.name.startswith("_"):
            lines += entry(method, f"{node.name}.")
    return lines


def signature(node):
    """The arguments and the result, without self."""
    arguments = node.args
    for group in (arguments.posonlyargs, arguments.args):
        if group and group[0].arg in ("self", "cls"):
            del group[0]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){result if node.name != '__init__' else ''}"


def markdown(docstring):
    """Lines of a Google-style docstring as Markdown: its sections become lists."""
    lines, inside, fenced = [], False, False
    for line in docstring.splitlines():
        named = re.fullmatch(r"(\w+):", line)
        if named and named[1] in SECTIONS:
            lines += [f"*{named[1]}*", ""]
            inside = True
        elif inside and re.match(r" {4}\S", line):
            name, colon, text = line.strip().partition(": ")
            lines.append(
                f"- `{name}`: {text}" if colon and " " not in name else f"- {line.strip()}"
            )
        elif inside and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line
            table = line.startswith("    ")
            lines += ["```"] * (table != fenced)
            fenced = table
            lines.append(line.removeprefix("    "))
    return [*lines, *["```"] * fenced]


def configuration_page():
    """The page of every key of every command and of the choices of each group."""
    lines = [
        "# Configuration",
        "",
        "A command's keys are set on its command line, `key=value`. A key of a group is written",
        "with the group's name, `optimizer.lr=1e-3`; `group=choice` takes another file of it.",
        "`???` must be given.",
        "",
        "*Made by `docs/build_reference.py` from `conf/`.*",
    ]
    files = sorted((ROOT / "conf").glob("*.yaml"))
    groups = sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir())
    for path in files:
        lines += ["", f"## {path.stem}", "", *configuration(path, "")]
    for group in groups:
        lines += ["", f"## Group `{group.name}`"]
        for path in sorted(group.glob("*.yaml")):
            prefix = "model." if group.name == "head" else f"{group.name}."
            prefix = "" if group.name == "experiment" else prefix
            lines += ["", f"### `{group.name}={path.stem}`", "", *configuration(path, prefix)]
    return "\n".join(lines) + "\n"


def configuration(path, prefix):
    """The comment at the head of a file, and a table of its keys."""
    source = path.read_text().splitlines()
    head = []
    for line in source:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            text = line.removeprefix("#").strip()
            head += [f"`{text}`", ""] if text.startswith("python ") else [text]
    rows = list(leaves(yaml.compose(path.read_text()), prefix, source))
    if not rows:
        return head
    table = ["| key | default | |", "|---|---|---|"]
    table += [f"| `{key}` | `{value}` | {note} |" for key, value, note in rows]
    return [*head, "", *table]


def leaves(node, prefix, source):
    """Key, value and comment of every leaf; Hydra's own sections are left out."""
    if node is None:
        return
    for key, value in node.value:
        if key.value in ("defaults", "hydra"):
            continue
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from leaves(value, f"{name}.", source)
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style:  # a line for each item
            items = yaml.SafeLoader("").construct_object(value, deep=True)
            note = source[key.end_mark.line].partition(" #")[2]
            yield name, cell(flow(items)), cell(note.strip())
        else:
            line = source[value.end_mark.line if value.end_mark.column else value.start_mark.line]
            text = line.split(":", 1)[1] if ":" in line else line
            shown, _, note = text.partition(" #")
            yield name, cell(shown.strip() or "{}"), cell(note.strip())


def flow(items):
    """A list in one line, without quotes."""
    return f"[{', '.join(flow(one) if isinstance(one, list) else str(one) for one in items)}]"


def cell(text):
    """Text that cannot break a table."""
    return text.replace("|", "\\|")


def build():
    """The pages by name."""
    return {"python.md": python_page(), "configuration.md": configuration_page()}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name, text in build().items():
        (PAGES / name).write_text(text)
        print(textwrap.shorten(f"docs/reference/{name}: {len(text.splitlines())} lines", 80))
