"""What the audit of dependencies says: what it knows, and that it knows nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

SPEC = importlib.util.spec_from_file_location(
    "audit", Path(__file__).parents[1] / ".ci" / "audit.py"
)
assert SPEC is not None and SPEC.loader is not None
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)


def told(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found"}


def test_a_vulnerability_fails_and_is_named():
    code, lines = audit.verdict(1, told(CLEAN, BAD, UNKNOWN), "")
    assert code == 1 and lines[0] == "audit: b 2: CVE-1, mended in 2.1"
    assert lines[-1] == "audit: 2 packages, 1 known vulnerabilities; 1 packages unknown"
    assert audit.verdict(0, told(CLEAN), "") == (0, ["audit: 1 packages, 0 known vulnerabilities"])


def test_what_was_not_audited_says_so():
    for code, out, err in (
        (0, told(UNKNOWN, UNKNOWN), ""),  # a mirror without the service
        (1, "", "Traceback …\nServiceError: no route to host"),
        (1, "[]", ""),
    ):
        status, (line,) = audit.verdict(code, out, err)
        assert status == 0 and line.startswith("audit: SKIPPED")
