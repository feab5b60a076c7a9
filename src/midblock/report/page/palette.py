"""Colours by variant, the same on the page and on paper: base in ink, tuned models in Okabe and Ito's safe hues."""

INK = ("#1b1f27", "#e8eaf0")
TUNED = (
    ("#0072b2", "#57b0f5"),
    ("#d55e00", "#ff8f4f"),
    ("#009e73", "#35cf9f"),
    ("#cc79a7", "#ee9fcb"),
    ("#d99000", "#f5c04a"),
    ("#45a5dd", "#a9dcff"),
)
HEAT = (("#eef1f6", "#1d2230"), ("#5aa5c8", "#2f6f9f"), ("#0b2f6b", "#d8f0ff"))  # low, middle, high


def variables() -> str:
    """CSS custom properties: --m0 the base, --m1… the tuned models, --heat0…2 the ramp; each light and dark."""
    names = {f"m{i}": pair for i, pair in enumerate((INK, *TUNED))} | {f"heat{i}": pair for i, pair in enumerate(HEAT)}
    return ":root{" + "".join(f"--{name}:light-dark({light},{dark});" for name, (light, dark) in names.items()) + "}"


def on_paper(index: int) -> str:
    """Colour of variant number `index` (0 the base) on white; hues repeat after the sixth tuned model."""
    return INK[0] if index == 0 else TUNED[(index - 1) % len(TUNED)][0]


def look(hue: int) -> str:
    """Class of a model's colour on the page: "m0" the base, then the hues in turn."""
    return f"m{(hue - 1) % len(TUNED) + 1 if hue else 0}"
