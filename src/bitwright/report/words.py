"""Numbers and verdicts in words: every unit, rounding and sentence of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from bitwright.report.summary import LayerRow, Lost, MethodRow, Summary, Verification

NBSP = "\u00a0"
DASH = "\u2013"
MISSING = f"{DASH} not measured"
_SUPERSCRIPT = str.maketrans("-0123456789", "\u207b⁰¹²³⁴⁵⁶⁷⁸⁹")
#: an error of fewer points than a tenth gets another decimal
_SMALL_ERROR = 0.001
_SHARES = re.compile(r"top-?\d|acc|recall|precision|iou", re.IGNORECASE)
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    """`text` without what XML forbids, or what would turn the direction of the text around it."""
    return _UNWANTED.sub("\ufffd", text)


def shortened(text: str, length: int = 28) -> str:
    """`text` with its middle left out where it is longer than `length` characters."""
    text = plain(text)
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def significant(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, never in exponent form: `100`, `88.1`, `0.0123`."""
    if value == 0:
        return "0"
    # the exponent after rounding: 9.999 becomes 10.0, not 10.00
    value = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(places, 0)}f}"


def decimal_bytes(count: int) -> str:
    """Bytes in decimal units (1 KB = 1,000 bytes) to three digits: `88.1 KB`."""
    size, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        # 999.6 KB would be rounded to 1,000 KB
        if abs(size) < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{significant(size) if unit != 'B' else int(size)}{NBSP}{unit}"


def trimmed(text: str) -> str:
    """A decimal number without zeros at its end: `3` for `3.00`."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def bytes_mark(value: float) -> str:
    """Round bytes as an axis shows them: `50 KB`."""
    figure, _, unit = decimal_bytes(round(value)).partition(NBSP)
    return f"{trimmed(figure)}{NBSP}{unit}"


def exact_bytes(count: int) -> str:
    """`88,123 bytes`."""
    return f"{count:,} byte{'' if count == 1 else 's'}"


def number(value: float, digits: int = 3) -> str:
    """`0.0412`, or `4.12 × 10⁻⁵` where that is shorter."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'-' if value < 0 else ''}∞"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return significant(value, digits)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}{NBSP}×{NBSP}{power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """`10⁻³`."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def percent(share: float) -> str:
    """`96.1 %`; never `100.0 %` for less than all nor `0.0 %` for more than none."""
    text = f"{100 * share:.1f}"
    if share < 1 and text == "100.0":
        return f">{NBSP}99.9{NBSP}%"
    if share > 0 and text == "0.0":
        return f"<{NBSP}0.1{NBSP}%"
    return f"{text}{NBSP}%"


def times(ratio: float) -> str:
    """`12.3×`."""
    return f"{significant(ratio)}×"


def method_name(row: MethodRow) -> str:
    """The name of a row in the table of methods."""
    if row.name == "float":
        return "Original, float32"
    name = plain(row.title or row.name)
    if row.name == "uniform" and row.mean_bits is not None:
        bits = trimmed(f"{row.mean_bits:.2f}")
        return f"{name}, {bits} bit{'' if bits == '1' else 's'}"
    return name


def why(summary: Summary) -> str:
    """What the run's score predicts, and how its method hands out bits; empty if not known."""
    if not summary.score:
        return plain(summary.rule)
    told = "For every channel and width it is predicted what rounding would cost: "
    return f"{told}{plain(summary.score)}. {plain(summary.rule)}".strip()


def divergence_unit(summary: Summary) -> str:
    """Unit of the divergence and of predicted losses."""
    return "nats" if summary.divergence == "kl" else "output units²"


def divergence_name(summary: Summary) -> str:
    """What is measured between the outputs of two models."""
    return "KL divergence" if summary.divergence == "kl" else "Squared difference"


def in_percent(summary: Summary) -> bool:
    """Whether the metric is a share, shown in percent."""
    return is_share(summary.metric_name, [m.metric for m in summary.methods])


def is_share(name: str, values: Iterable[float | None]) -> bool:
    """Whether a metric of this name and these values is a share."""
    known = [v for v in values if v is not None]
    return bool(_SHARES.search(name)) and all(0 <= v <= 1 for v in known)


def metric_value(summary: Summary, value: float) -> str:
    """The metric in percent where it is a share."""
    return percent(value) if in_percent(summary) else number(value, 4)


def metric_error(summary: Summary, stderr: float) -> str:
    """A standard error of the metric, in percentage points where it is a share."""
    return f"{100 * stderr:.1f}" if in_percent(summary) else number(stderr, 2)


def difference(lost: Lost, share: bool, places: int) -> str:
    """`0.6 ± 0.8`, in points where it is of a share; `± ≤` before a bound of the error.

    Args:
        places: decimals of points.
    """
    text = f"{100 * lost.value:.{places}f}" if share else number(lost.value)
    if lost.stderr is None:
        return text
    error = f"{100 * lost.stderr:.{places}f}" if share else number(lost.stderr, 2)
    return f"{text} ±{NBSP}{'' if lost.paired else f'≤{NBSP}'}{error}"


def lost_words(summary: Summary) -> tuple[str, str] | None:
    """(`0.6 ± 0.8`, `points lost`) of the chosen method's metric; None if it is not known."""
    lost, share = summary.lost, in_percent(summary)
    if lost is None:
        return None
    small = lost.stderr is not None and lost.stderr < _SMALL_ERROR
    figure = difference(replace(lost, value=abs(lost.value)), share, 2 if small else 1)
    return figure, f"{'points ' if share else ''}{'gained' if lost.value < 0 else 'lost'}"


def size_ratio(summary: Summary) -> float | None:
    """Bytes of the original over bytes of the chosen file."""
    if not summary.chosen or not summary.original or not summary.chosen.bytes:
        return None
    return summary.original.bytes / summary.chosen.bytes


def smaller(ratio: float) -> str:
    """`12.3× smaller`, `1.20× larger` or `the same size`."""
    if ratio == 1:
        return "the same size"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def runtime_name(verification: Verification) -> str:
    """`ONNX Runtime 1.31 on x86_64`."""
    return plain(verification.runtime).replace("onnxruntime", "ONNX Runtime")


def headline(summary: Summary) -> str:
    """What was gained and what was lost, in one sentence."""
    chosen, original = summary.chosen, summary.original
    if chosen is None:
        return "No compressed model was written."
    parts = []
    ratio = size_ratio(summary)
    if ratio is not None and original is not None:
        change = f"{decimal_bytes(original.bytes)} → {decimal_bytes(chosen.bytes)}"
        parts.append(f"{smaller(ratio)} ({change})")
    else:
        parts.append(f"compressed to {decimal_bytes(chosen.bytes)}")
    if chosen.metric is not None:
        text = metric_value(summary, chosen.metric)
        if original is not None and original.metric is not None:
            text = f"{metric_value(summary, original.metric)} → {text}"
        lost = lost_words(summary)
        if lost is not None:
            text += f" ({' '.join(lost)})"
        elif chosen.metric_stderr is not None:
            text += f" (±{NBSP}{metric_error(summary, chosen.metric_stderr)})"
        parts.append(f"{plain(summary.metric_name)} {text}")
    else:
        parts.append("accuracy was not measured")
    if chosen.agreement is not None:
        parts.append(f"answers agree on {percent(chosen.agreement)} of the test inputs")
    parts.append(verdict(summary.verification))
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def verdict(verification: Verification | None) -> str:
    """The outcome of the verification in a few words."""
    if verification is None:
        return "the exported file was not verified"
    if not verification.ok:
        return f"verification FAILED in {runtime_name(verification)}"
    if not verification.tensors:
        return f"same class verified in {runtime_name(verification)}"
    return f"verified tensor by tensor in {runtime_name(verification)}"


def comparison(summary: Summary) -> str | None:
    """The chosen method against the uniform width nearest to it; None if there is none."""
    chosen = summary.chosen
    if chosen is None or chosen.kl is None or chosen.mean_bits is None:
        return None
    rivals = [
        m for m in summary.methods if m.name == "uniform" and m.kl is not None and not m.chosen
    ]
    bits = chosen.mean_bits
    rival = min(rivals, key=lambda m: abs((m.mean_bits or 0) - bits), default=None)
    if rival is None or rival.kl is None or not (rival.kl > 0 and chosen.kl > 0):
        return None
    unit, more = divergence_unit(summary), rival.kl >= chosen.kl
    ratio = rival.kl / chosen.kl if more else chosen.kl / rival.kl
    text = (
        f"At {decimal_bytes(chosen.bytes)}, the chosen model's {divergence_name(summary)} from the "
        f"original is {number(chosen.kl)} {unit}. {method_name(rival)}, at "
        f"{decimal_bytes(rival.bytes)}, has {number(rival.kl)} {unit}: "
        f"{times(ratio)} {'more' if more else 'less'}"
    )
    if chosen.kl_stderr is not None and rival.kl_stderr is not None:
        error = math.hypot(chosen.kl_stderr, rival.kl_stderr)
        if abs(chosen.kl - rival.kl) < 2 * error:
            text += ", a difference of less than two standard errors"
    return text + "."


def widths_used(row: LayerRow) -> str:
    """Channels of each width in a layer: `8 bits × 3, 4 bits × 20`."""
    if not row.bits:
        return "kept in float"
    counts = [(b, row.bits.count(b)) for b in sorted(set(row.bits), reverse=True)]
    return ", ".join(f"{b} bit{'' if b == 1 else 's'} × {n}" for b, n in counts)


def verification_words(verification: Verification) -> str:
    """What was compared, and how it came out."""
    v = verification
    inputs = f"{v.images:,} input{'' if v.images == 1 else 's'}"
    if not v.tensors:
        compared = f"The file was run on {inputs}; activations stay in float, so there are no "
        compared += "integer tensors to compare"
    elif v.equal == v.tensors:
        compared = f"All {v.tensors:,} integer tensors inside the network are equal, element by "
        compared += f"element, on {inputs}"
    else:
        compared = f"{v.equal:,} of {v.tensors:,} integer tensors inside the network are equal, "
        compared += f"element by element, on {inputs}; {v.tensors - v.equal:,} differ"
        compared += "s" if v.tensors - v.equal == 1 else ""
    return f"{compared}. The largest output is the same on {percent(v.same_class)} of them."
