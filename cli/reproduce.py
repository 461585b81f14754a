"""`einsight reproduce PAPER`: a paper's tables recomputed, beside the printed values."""

from __future__ import annotations

import typer

from einsight.cli import reproduce_flashbias, reproduce_fusemax, reproduce_gna

group = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    help="A paper's tables recomputed with our models, beside the published values.",
)  # fmt: skip
group.callback()(lambda: None)
group.command("fusemax", short_help="FuseMax (MICRO 2024): attention and layers on spatial arrays.")(reproduce_fusemax.run)
group.command("gna", short_help="GNA (2025), FNA (2024): neighborhood attention, counts and profiles.")(reproduce_gna.run)
group.command("flashbias", short_help="FlashBias (NeurIPS 2025): attention with a bias on GPUs.")(reproduce_flashbias.run)
