"""Known vulnerabilities of the packages installed beside this Python; needs pip-audit.

Exit status 1 if there is any, or if pip-audit itself fails. Where the service that knows them
cannot be reached, or knows none of the packages, it says that nothing was audited, and passes,
unless BITWRIGHT_AUDIT=required is in the environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

#: how pip-audit ends where the service does not answer: what it says itself (a timeout, endless
#: redirection), or the exceptions of requests and urllib3 that it lets through, behind a traceback
_UNREACHABLE = re.compile(
    r"^(.*Could not connect to .*"
    r"|.*is not redirecting properly.*"
    r"|requests\.exceptions\.(ConnectionError|ConnectTimeout|ReadTimeout|Timeout|ProxyError|SSLError"
    r"|ChunkedEncodingError|TooManyRedirects)\b.*"
    r"|requests\.exceptions\.HTTPError: (5\d\d|429|403|407)\b.*"
    r"|urllib3\.exceptions\.(\w*Timeout\w*|\w*Connection\w*|ProtocolError|ProxyError|MaxRetryError)\b.*)$",
    re.MULTILINE,
)


def verdict(code: int, out: str, err: str, required: bool = False) -> tuple[int, list[str]]:
    """Exit status and lines to print, from pip-audit's exit status and its JSON.

    Args:
        code, out, err: of pip-audit.
        required: whether nothing audited is a failure.
    """
    try:
        packages = json.loads(out)["dependencies"]
        known = [p for p in packages if "skip_reason" not in p]
        lines = [
            f"audit: {p['name']} {p['version']}: {v['id']}, mended in "
            f"{', '.join(v['fix_versions']) or 'no version yet'}"
            for p in known
            for v in p["vulns"]
        ]
    except (ValueError, KeyError, TypeError):
        reason = _UNREACHABLE.findall(err)
        if reason:
            return _skipped(f"the service cannot be reached: {reason[-1][0].strip()}", required)
        last = (err.strip().splitlines() or ["it printed nothing"])[-1]
        return 1, [f"audit: FAILED, pip-audit ended with status {code}: {last[:160]}"]
    if code != int(bool(lines)):
        return 1, [*lines, f"audit: FAILED, pip-audit ended with status {code} all the same"]
    if not known:
        return _skipped(f"the service here knows none of {len(packages)} packages", required)
    left = len(packages) - len(known)
    summary = f"audit: {len(known)} packages, {len(lines)} known vulnerabilities"
    return int(bool(lines)), [*lines, summary + (f"; {left} packages unknown" if left else "")]


def _skipped(why: str, required: bool) -> tuple[int, list[str]]:
    what = "and BITWRIGHT_AUDIT=required" if required else "BITWRIGHT_AUDIT=required would fail"
    return int(required), [f"audit: SKIPPED, NOTHING WAS AUDITED ({what}): {why[:160]}"]


def main() -> None:
    """Ask pip-audit about this environment."""
    words = ("--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", "15")
    required = os.environ.get("BITWRIGHT_AUDIT", "") == "required"
    try:
        found = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        code, lines = verdict(found.returncode, found.stdout, found.stderr, required)
    except subprocess.TimeoutExpired:
        code, lines = _skipped("the service cannot be reached: no answer in 300 s", required)
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
