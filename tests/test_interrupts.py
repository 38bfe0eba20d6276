"""Control-C in every command, and while Python still imports: one line and status 130."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bitwright
from bitwright import cli, interrupts
from pipeline.tiny import call

SOURCE = Path(bitwright.__file__).parents[1]
LINE = "bitwright: interrupted; the same command continues\n"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}


@pytest.mark.parametrize(
    ("works", "words"),
    [
        ("report.compare.compare", ("compare", "a", "b")),
        ("report.inspection.inspect", ("inspect", "a")),
        ("pipeline.load", ("overflow", "a")),
        ("deploy.artefact.load", ("convert-to", "c", "a")),
    ],
)
def test_commands_that_only_read(
    works: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bitwright.{works}", pressed)
    assert call(*words) == 130
    assert capsys.readouterr() == ("", LINE)


def test_every_command_can_be_interrupted():
    found = {c.name: getattr(c.callback, "__wrapped__", None) for c in cli.app.registered_commands}
    assert found == cli.COMMANDS


def test_a_command_has_control_c_as_an_exception_again(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.watch()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with interrupts.interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is interrupts._end  # while the rest is cleared away
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of nohup, or a shell's job behind the scenes
        interrupts.watch()
        with interrupts.interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_entry_imports_next_to_nothing():
    """What is imported before Control-C is watched for shows a traceback."""
    text = "import sys; import bitwright.__main__; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", text], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {n for n in found if n.startswith("bitwright")} == {
        "bitwright", "bitwright.__main__", "bitwright.interrupts",
    }  # fmt: skip
    assert not {"torch", "numpy", "typer", "rich", "onnx", "numba"} & set(found)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into Linux's /proc")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_while_python_imports(seed: int, tmp_path: Path):
    """A fresh interpreter, some moments after the first of torch's libraries has been loaded."""
    words = ("compress", "--model", "demo", "--data", "demo", "--out", str(tmp_path / "run"))
    # where these tests run in the background, children would be deaf to it
    child = subprocess.Popen(
        [sys.executable, "-m", "bitwright", *words],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    maps = Path(f"/proc/{child.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert child.poll() is None
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err) == (130, "", LINE)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------- the package that imports so little


def fresh(text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_come_from_where_types_say():
    """The names and modules under TYPE_CHECKING are those that are imported when asked for."""
    import ast

    tree = ast.parse((SOURCE / "bitwright" / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"bitwright.{home}" for name, home in bitwright._HOME.items()}
    assert sorted([*typed, "__version__"]) == sorted(bitwright.__all__)
    for name, home in typed.items():
        assert getattr(bitwright, name) is getattr(sys.modules[str(home)], name)
    assert set(bitwright.__all__) <= set(dir(bitwright))


def test_prune_is_the_function_in_whatever_order_things_are_imported():
    """`bitwright.prune` is a package, too, and Python puts it there when it is imported."""
    fresh(
        "import bitwright.prune.files, bitwright\n"
        "from bitwright.pipeline import prune as function\n"
        "from bitwright import prune\n"
        "assert prune is function is bitwright.prune, prune\n"
        "import bitwright.prune.select, sys\n"
        "assert bitwright.prune is function\n"
        "assert bitwright.multibit is sys.modules['bitwright.multibit']\n"
        "assert not hasattr(bitwright, 'prunes') and not hasattr(bitwright, '__wrapped__')\n"
        "try:\n    from bitwright import prunes\n"
        "except ImportError as error:\n    assert 'prunes' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
