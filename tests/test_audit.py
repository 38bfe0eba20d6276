"""What the audit of dependencies says: what it knows, and that it knows nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

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


#: the ends of what pip-audit 2.10 prints: behind a proxy that is not there; without an answer in
#: time; with a service that is out of order
PROXY = """Traceback (most recent call last):
  File "adapters.py", line 671, in send
requests.exceptions.ProxyError: HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded
"""
NO_ANSWER = """ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed
ERROR:pip_audit._cli:Tip: your network may be blocking this service. Try another service
"""
OUT_OF_ORDER = """Traceback (most recent call last):
requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: https://pypi.org/

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "pypi.py", line 77, in query
pip_audit._service.interface.ServiceError
"""
#: and of what has nothing to do with the service
BROKEN = """Traceback (most recent call last):
  File "requests/exceptions.py", line 3, in <module>
    raise ValueError("no requests.exceptions.ConnectionError: here")
ValueError: no requests.exceptions.ConnectionError: here
"""


@pytest.mark.parametrize(
    ("code", "out", "err", "why"),
    [
        (0, told(UNKNOWN, UNKNOWN), "", "knows none of 2 packages"),  # a mirror without the service
        (1, "", PROXY, "requests.exceptions.ProxyError: HTTPSConnectionPool(host='pypi.org'"),
        (1, "", NO_ANSWER, "Could not connect to PyPI's vulnerability feed"),
        (1, "", OUT_OF_ORDER, "HTTPError: 503 Server Error"),
    ],
)
def test_what_was_not_audited_says_so(code: int, out: str, err: str, why: str):
    status, (line,) = audit.verdict(code, out, err)
    assert status == 0 and line.startswith("audit: SKIPPED, NOTHING WAS AUDITED") and why in line
    status, (line,) = audit.verdict(code, out, err, required=True)
    assert status == 1 and line.startswith("audit: SKIPPED, NOTHING WAS AUDITED") and why in line


@pytest.mark.parametrize(
    ("code", "out", "err", "why"),
    [
        (1, "", BROKEN, "status 1: ValueError"),
        (1, "", "/usr/bin/python: No module named pip_audit\n", "No module named pip_audit"),
        (2, "", "usage: pip-audit\npip-audit: error: unrecognized arguments", "unrecognized"),
        (-11, "", "", "status -11: it printed nothing"),
        (1, "[]", "", "status 1"),
        (1, '{"dependencies": [{"name": "a"}]}', "", "status 1"),
        (3, told(CLEAN), "", "status 3"),
    ],
)
@pytest.mark.parametrize("required", [False, True])
def test_a_crash_fails(code: int, out: str, err: str, why: str, required: bool):
    status, (line,) = audit.verdict(code, out, err, required)
    assert status == 1 and line.startswith("audit: FAILED") and why in line


@pytest.mark.parametrize(("word", "status"), [("", 0), ("required", 1)])
def test_the_environment_can_require_it(
    word: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def unreachable(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", PROXY)

    monkeypatch.setattr(subprocess, "run", unreachable)
    monkeypatch.setenv("BITWRIGHT_AUDIT", word)
    with pytest.raises(SystemExit) as end:
        audit.main()
    assert end.value.code == status and "SKIPPED" in capsys.readouterr().out
