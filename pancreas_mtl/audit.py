"""Say what is wrong with a dataset, as text and in `audit.json`; with fix=true write a mended copy.

python -m pancreas_mtl.audit data=quiz data.root=DIR output_dir=outputs/audit
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.data.audit import audit_cases, largest_case_bytes
from pancreas_mtl.data.cases import read_cases
from pancreas_mtl.data.files import make_folder, write_json
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.data.repair import check_destination, repair_text, write_repaired
from pancreas_mtl.errors import CaseError


@command("audit")
def main(config: DictConfig) -> None:
    """Audit all cases; errors that are left, in the dataset or in its copy, give exit code 1."""
    root, output_dir = Path(config.data.root), Path(config.output_dir)
    if config.fix:
        check_destination(root, output_dir / "fixed")
    cases = read_cases(config.data.layout, root)
    make_folder(output_dir)
    workers = config.workers or default_workers(largest_case_bytes(cases))
    report = audit_cases(cases, workers=workers)
    print(report.text())
    write_json(output_dir / "audit.json", report.as_json())
    if config.fix:
        repairs = write_repaired(report, root, output_dir / "fixed", workers=workers)
        actions = {repair.case.name: repair.action for repair in repairs}
        write_json(output_dir / "audit.json", report.as_json() | {"repairs": actions})
        print(f"{repair_text(repairs)}\nmended copy: data.root={output_dir / 'fixed'}")
        if lost := sum(repair.loses_something for repair in repairs):
            raise CaseError(f"{lost} of {len(cases)} cases, or their masks, had to be left out")
    elif report.errors:
        raise CaseError(f"{report.summary()}: mend them, or write a mended copy with fix=true")


if __name__ == "__main__":
    main()
