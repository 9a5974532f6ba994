"""Draws docs/method/curricula.png: the context length of every training step, by curriculum."""

from pathlib import Path

from matplotlib.figure import Figure

from longview.learner.config import CurriculumConfig
from longview.learner.curriculum import context_length

STEPS, LONGEST = 600, 64
CURRICULA = {
    "fixed": CurriculumConfig("fixed"),
    "sprinkle, full 0.8": CurriculumConfig("sprinkle", full=0.8),
    "progressive (default)": CurriculumConfig(),
    "progressive, shorter uniform": CurriculumConfig(shorter="uniform"),
}


def main() -> None:
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    panels = figure.subplots(1, len(CURRICULA), sharey=True)
    for axes, (name, config) in zip(panels, CURRICULA.items(), strict=True):
        lengths = [context_length(config, 0, step, STEPS, LONGEST) for step in range(STEPS)]
        axes.plot(lengths, ".", markersize=2)
        mean = sum(lengths) / STEPS
        axes.axhline(mean, color="grey", linewidth=0.8)
        axes.set(title=f"{name}\nmean {mean:.0f}", xlabel="training step")
    panels[0].set_ylabel("context length T_o")
    figure.savefig(Path(__file__).with_name("curricula.png"), dpi=110)


if __name__ == "__main__":
    main()
