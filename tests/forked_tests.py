"""Fast tests in forks of a warm process: once to note which lines each reaches, then as asked.

A fork has torch, pytest and the rest imported already, and imports only our own package and tests.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: without -x: the first run goes on
WORDS = ["-q", "-m", "not slow and not data", "-p", "no:cacheprovider", "--no-header", "--tb=no",
         "-p", "_hypothesis_pytestplugin"]  # fmt: skip


def forked(job: Callable[[], int], cpu_s: float, wall_s: float) -> tuple[str, float]:
    """What became of `job` in a fork (`0` … its exit code, or `timeout`), and its seconds.

    The limit that counts is processor time, which a busy machine does not change; the other one is
    for what waits for ever.
    """
    begun = time.perf_counter()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setpgid(0, 0)
            limit = int(cpu_s) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            code = job()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    said = "timeout"
    while time.perf_counter() - begun < wall_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            said = "timeout" if code in (-signal.SIGXCPU, -signal.SIGKILL) else str(code)
            break
        time.sleep(0.02)
    else:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):  # what it has left running
        os.killpg(pid, signal.SIGKILL)
    return said, time.perf_counter() - begun


def _settle(source: Path, said: Path) -> None:
    """In a fork: take the package from `source`, print to `said`, find examples quickly."""
    from hypothesis import Phase, settings

    # no database: what one mutant fails on is not tried on the next; and no shrinking
    settings.register_profile(
        "mutants", database=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
    )
    settings.load_profile("mutants")
    os.chdir(ROOT)
    sys.path.insert(0, str(source))
    os.environ.update(PYTHONPATH=str(source), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


class Noting:
    """Tells coverage which test runs, and keeps the processor seconds of each."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        begun = time.process_time()
        # a fixture of a whole file is set up by the file's first test alone: the file needs it
        self.found.switch_context(f"{item.nodeid.partition('::')[0]}|setup")
        result = yield
        self.seconds[item.nodeid] = round(time.process_time() - begun, 4)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self.found.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.found.switch_context(f"{item.nodeid.partition('::')[0]}|setup")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Only:
    """Runs the tests in `ranks`, in that order, and then the others of whole files."""

    def __init__(self, ranks: dict[str, int], whole: set[str]) -> None:
        self.ranks, self.whole = ranks, whole

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        here = [i for i in items
                if i.nodeid in self.ranks or i.nodeid.partition("::")[0] in self.whole]  # fmt: skip
        items[:] = sorted(here, key=lambda i: self.ranks.get(i.nodeid, len(self.ranks)))


@dataclass
class Piece:
    """What a run of one test file on the unchanged package found.

    Attributes:
        path: the test file; digest: its SHA-256.
        lines: file under `src/bitwright` → line → tests (`path|setup`: a fixture of the file).
        seconds: test that passes → its processor seconds; failed: the others.
        sources: file under `src/bitwright` → SHA-256.
    """

    path: str
    digest: str
    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]
    failed: list[str]
    sources: dict[str, str]

    def tests(self, file: str, lines: Iterable[int]) -> set[str] | None:
        """Tests that reach one of these lines of a file; None: their places are not known."""
        if self.sources.get(file) != digest(ROOT / "src" / "bitwright" / file):
            return None
        places = self.lines.get(file, {})
        return self._whole({t for line in lines for t in places.get(str(line), ())})

    def users(self, file: str) -> set[str]:
        """Tests that reach any line of a file."""
        return self._whole({t for tests in self.lines.get(file, {}).values() for t in tests})

    def _whole(self, found: set[str]) -> set[str]:
        if f"{self.path}|setup" in found:  # a fixture that any of them may need
            return set(self.seconds)
        return found & self.seconds.keys()


@dataclass(frozen=True)
class Reached:
    """Which tests reach which lines: what all test files found."""

    pieces: list[Piece]

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """The tests that reach one of these lines of a file; any line of it if none reaches these.

        Lines that run at import, and those of compiled kernels, are in no test; those of a file
        that has changed since are not where they were. Cheap ones come first, and those of the
        file named for the module before others.
        """
        by_line = {p.path: p.tests(file, lines) for p in self.pieces}
        if not any(by_line.values()):
            by_line = dict.fromkeys(by_line)
        chosen: list[tuple[bool, float, list[str]]] = []
        for piece in self.pieces:
            known = by_line[piece.path]
            found = piece.users(file) if known is None else known
            if found:
                ordered = sorted(found, key=lambda t, p=piece: (p.seconds[t], t))
                other = Path(file).stem not in Path(piece.path).stem
                mean = sum(piece.seconds[t] for t in found) / len(found)
                chosen.append((other, mean, ordered))
        return [t for _, _, tests in sorted(chosen) for t in tests]

    def seconds(self, tests: Iterable[str]) -> float:
        """Processor seconds that tests take."""
        known = {t: s for p in self.pieces for t, s in p.seconds.items()}
        return sum(known[t] for t in tests)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ours(module: Any) -> bool:
    """Whether a module lies in this repository's own folders, or is a folder without a file."""
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    places = (ROOT / name for name in ("src", "tests", "benchmarks", "docs"))
    return any(Path(file).resolve().is_relative_to(place) for place in places)


def warm(paths: list[str]) -> None:
    """Import here what the tests of `paths` import from others."""
    scratch = ROOT / "build" / "mutants"
    scratch.mkdir(parents=True, exist_ok=True)
    names = scratch / "modules"

    def look() -> int:
        _settle(ROOT / "src", scratch / "warm.log")
        pytest.main([*WORDS, "--collect-only", *paths])
        theirs = [n for n, module in sys.modules.items() if not _ours(module)]
        names.write_text("\n".join(theirs))
        return 0

    forked(look, 600, 3600)
    for name in names.read_text().splitlines():
        if name.startswith("__"):
            continue
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    if "bitwright" in sys.modules:  # forks would not import the copy that they are to test
        raise RuntimeError("the package is imported where nothing but others' modules should be")
    gc.collect()
    gc.freeze()


def test_files(paths: Iterable[str]) -> list[str]:
    """The test files that paths under the root are or hold."""
    found = [f for p in paths for f in sorted((ROOT / p).glob("test_*.py")) or [ROOT / p]]
    return [str(f.relative_to(ROOT)) for f in found]


def reached(paths: list[str], packages: tuple[str, ...]) -> Reached:
    """Run the test files of `paths` on the unchanged package under coverage, one after the other.

    What is found stays in `build/mutants`: a file that has not changed is not run again. A run that
    is stopped goes on where it was.
    """
    place = ROOT / "build" / "mutants"
    pieces = []
    for path in test_files(paths):
        kept = place / f"{path.replace('/', '-').removesuffix('.py')}.json"
        piece = Piece(**json.loads(kept.read_text())) if kept.is_file() else None
        if piece is None or piece.digest != digest(ROOT / path):
            piece = _noted(path, packages, kept.with_suffix(".coverage"))
            kept.write_text(json.dumps(asdict(piece)))
            for test in piece.failed:
                print(f"fails on the unchanged package: {test}", file=sys.stderr)
        pieces.append(piece)
    return Reached(pieces)


def _noted(path: str, packages: tuple[str, ...], data: Path) -> Piece:
    import coverage

    times = data.with_suffix(".times")
    times.unlink(missing_ok=True)

    def look() -> int:
        _settle(ROOT / "src", data.with_suffix(".log"))
        found = coverage.Coverage(data_file=str(data), branch=True, source_pkgs=["bitwright"])
        found.start()
        noting = Noting(found)
        code = int(pytest.main([*WORDS, path], plugins=[noting]))
        found.stop()
        found.save()
        times.write_text(json.dumps([noting.seconds, noting.failed]))
        return code

    said, _ = forked(look, 3600, 24 * 3600)
    # 5: all of its tests are slow ones
    if said not in ("0", "1", "5") or not times.is_file():
        raise RuntimeError(f"{path} on the unchanged package: {said}; see {data}")
    held = coverage.CoverageData(basename=str(data))
    held.read()
    base = ROOT / "src" / "bitwright"
    lines: dict[str, dict[str, list[str]]] = {}
    for package in packages:
        for source in sorted((base / package).glob("*.py")):
            places = held.contexts_by_lineno(str(source))
            name = str(source.relative_to(base))
            lines[name] = {
                str(n): found for n, t in places.items() if (found := sorted(filter(None, t)))
            }
    seconds, failed = json.loads(times.read_text())
    passed = {t: s for t, s in seconds.items() if t not in failed}
    sources = {n: digest(base / n) for n in lines}
    return Piece(path, digest(ROOT / path), lines, passed, failed, sources)


def fails(source: Path, tests: list[str], whole: list[str], seconds: float) -> tuple[str, float]:
    """Whether one of these tests fails on the package in `source`: `1`; `0`: none; `timeout`.

    Args:
        source: the folder that holds `bitwright`.
        tests: test ids, in the order in which they run.
        whole: files of which all tests run, after them.
        seconds: of the processor that they take on the unchanged package.
    """
    files = list(dict.fromkeys([*(t.partition("::")[0] for t in tests), *whole]))
    ranks = {t: i for i, t in enumerate(tests)}
    plugins = [Only(ranks, set(whole))]

    def look() -> int:
        _settle(source, ROOT / "build" / "mutants" / "last.log")
        words = [*WORDS, "-x", *files]
        return int(pytest.main(words, plugins=plugins))

    limit = 20 + 4 * seconds
    return forked(look, limit, 20 * limit)


def copied(to: Path) -> Path:
    """A copy of the package to put mutants into, compiled."""
    import compileall

    shutil.copytree(ROOT / "src" / "bitwright", to / "bitwright",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    compileall.compile_dir(str(to), quiet=2)
    return to
