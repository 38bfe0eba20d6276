"""Known vulnerabilities of the packages installed beside this Python; needs pip-audit.

Exit status 1 if there is any. Where the service that knows them cannot be reached, or knows none of
the packages, it says that nothing was audited, and passes.
"""

from __future__ import annotations

import json
import subprocess
import sys


def verdict(code: int, out: str, err: str) -> tuple[int, list[str]]:
    """Exit status and lines to print, from pip-audit's exit status and its JSON."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (err.strip().splitlines() or [f"exit status {code}"])[-1]
        return 0, [f"audit: SKIPPED, the service of vulnerabilities cannot be asked: {last[:160]}"]
    known = [p for p in packages if "skip_reason" not in p]
    if not known:
        return 0, [f"audit: SKIPPED, the service here knows none of {len(packages)} packages"]
    lines = [
        f"audit: {p['name']} {p['version']}: {v['id']}, mended in "
        f"{', '.join(v['fix_versions']) or 'no version yet'}"
        for p in known
        for v in p["vulns"]
    ]
    left = len(packages) - len(known)
    summary = f"audit: {len(known)} packages, {len(lines)} known vulnerabilities"
    return int(bool(lines)), [*lines, summary + (f"; {left} packages unknown" if left else "")]


def main() -> None:
    """Ask pip-audit about this environment."""
    words = ("--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", "15")
    try:
        found = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        code, lines = verdict(found.returncode, found.stdout, found.stderr)
    except subprocess.TimeoutExpired:
        code, lines = verdict(1, "", "no answer in 300 s")
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
