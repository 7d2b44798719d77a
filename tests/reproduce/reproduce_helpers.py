"""An experiment of no paper, small enough to follow by hand."""

from types import ModuleType

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, band, svg
from gradwise.reproduce.cells import Cell
from gradwise.reproduce.claims import Claim, Conclusion, judge_greater

CONTENT = {
    "title": "Doubling <doubles>",
    "experiment": "doubling",
    "claim": "Twice a number is more than it.",
    "paper": {
        "title": "On | twice",
        "authors": "A. Author",
        "venue": "arXiv 0000.00000",
        "url": "https://example.org/a_b",
    },
    "cost": {"small_cpu": "about 1 s", "full_gpu": "not measured"},
    "settings": {
        "seeds": {"value": [0, 1, 2, 3], "tag": "[V]"},
        "factor": {"value": 2.0, "tag": "[X]", "why": "half of four"},
        "data": {"value": "cifar10", "tag": "[V]"},
        "bias": {"value": False, "tag": "[D]"},
    },
    "smoke": {"seeds": [0, 1], "data": "synthetic"},
    "small": {"seeds": [0, 1, 2], "data": "synthetic"},
}


class Doubling(ModuleType):
    """The module of the experiment; counts its runs."""

    def __init__(self) -> None:
        super().__init__("gradwise.reproduce.experiments.doubling")
        self.ran: list[int] = []
        self.fail_at: int | None = None

    def cells(self, settings):
        return [Cell(f"seed={seed}", {"seed": seed}) for seed in settings["seeds"]]

    def run(self, settings, arguments, tell):
        if arguments["seed"] == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(arguments["seed"])
        tell(1, 2)
        gain = settings["factor"] - 1 + arguments["seed"] / 2
        return {"gain": gain, "odd": float("nan")}

    def conclude(self, settings, results):
        gains = [results[f"seed={seed}"]["gain"] for seed in settings["seeds"]]
        judged = judge_greater(gains)
        with axes() as (figure, axis):
            band(axis, [0, 1], [[gain, 2 * gain] for gain in gains], "gain")
            axis.legend()
            picture = Picture("gains", "The gains.", "Two rising lines.", svg(figure))
        return Conclusion(
            (Claim("Twice is more.", judged.words("units"), judged.verdict),),
            (
                Table(
                    "Gains",
                    ("seed", "gain"),
                    tuple((f"s{i}", f"{g:g}") for i, g in enumerate(gains)),
                ),
            ),
            (picture,),
            ("Nothing to note.",),
        )
