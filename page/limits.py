"""Limits on one drawing, and a count of what it has used of them."""

from page.style import DrawingError

MAX_SVG_BYTES = 256_000
MAX_ELEMENTS = 500
MAX_NUMBERS = 20_000
MAX_COORDINATE = 100_000.0
MAX_DEPTH = 20
MAX_LINES = 500


class Budget:
    """What a drawing has used so far; adding too much raises ``DrawingError``."""

    def __init__(self) -> None:
        self.elements = 0
        self.numbers = 0
        self.lines = 0

    def add_element(self) -> None:
        """Count one element."""
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise DrawingError(f"The drawing has more than {MAX_ELEMENTS} elements.")

    def add_numbers(self, numbers: int) -> None:
        """Count numbers, two for a point."""
        self.numbers += numbers
        if self.numbers > MAX_NUMBERS:
            raise DrawingError(f"The drawing has more than {MAX_NUMBERS // 2} points.")

    def add_lines(self, lines: int) -> None:
        """Count lines of any length."""
        self.lines += lines
        if self.lines > MAX_LINES:
            raise DrawingError(f"The drawing has more than {MAX_LINES} strokes.")
