"""How the figures are printed: Markdown tables that line up as text too, and what was aimed at beside what was reached."""


class Report:
    """Prints as it goes; can be written to a file as a whole."""

    def __init__(self):
        self.lines, self.aims = [], []

    def say(self, text=""):
        self.lines.append(text)
        print(text, flush=True)

    def table(self, head, rows):
        """A table: the first column to the left, numbers to the right."""
        cells = [head, *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

        def line(row):
            return "| " + " | ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))) + " |"

        self.say()
        self.say(line(head))
        self.say("|" + "|".join(("-" if column == 0 else "") + "-" * (width + (1 if column == 0 else 1)) + ("" if column == 0 else ":") for column, width in enumerate(widths)) + "|")
        for row in cells[1:]:
            self.say(line(row))
        self.say()

    def aim(self, what, aimed, reached, holds):
        """Notes what was aimed at; `holds` is None where it was not measured."""
        verdict = {True: "PASS", False: "MISS", None: "not measured"}[holds]
        self.aims.append((what, aimed, reached, verdict))

    def at_most(self, what, value, limit, unit=""):
        """An aim that a number stays at or below a limit."""
        self.aim(what, f"<= {figure(limit)}{unit}", f"{figure(value)}{unit}", value <= limit)

    def at_least(self, what, value, limit, unit=""):
        """An aim that a number reaches a limit."""
        self.aim(what, f">= {figure(limit)}{unit}", f"{figure(value)}{unit}", value >= limit)

    def verdicts(self):
        """The table of all aims."""
        self.say("## Aims")
        self.table(["aim", "aimed at", "reached", "verdict"], self.aims)

    def write(self, path):
        path.write_text("\n".join([*self.lines, ""]))


def figure(value):
    """Three digits that mean something."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def range_of(low, high):
    return f"{figure(low)} - {figure(high)}"
