"""PAGES: the one table of what each verb's runs bring to a page, in the order of the page; STEPS: its story.

The other table of verbs, in `midblock.runs.verbs`, says how they are called; a verb that fills run folders has a row in
both. How the page is read: docs/causes/report.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from midblock.report.figures.analysis import FIGURES
from midblock.report.figures.carve import necessity
from midblock.report.figures.erase import erased_loss, erased_rates
from midblock.report.figures.evaluate import forgetting, scores
from midblock.report.figures.recommend import asked_curves, repair_front
from midblock.report.figures.study import study_efficiency, study_forgetting
from midblock.report.figures.tune import TUNE_FIGURES
from midblock.report.figures.verbs import early_exit, gradient_flow, merge_alphas, steering, swapped
from midblock.report.page.facts import facts_of
from midblock.report.read.erased import read_erased
from midblock.report.read.evaluation import read_evaluation
from midblock.report.read.reading import Traits
from midblock.report.read.studied import read_study
from midblock.report.read.tuning import read_tune
from midblock.report.sections.analysis import analysis_opening, analysis_sections
from midblock.report.sections.analysis_page import analysis_page
from midblock.report.sections.carve import carve_sections
from midblock.report.sections.erase import erase_provenance, erase_sections
from midblock.report.sections.evaluate import evaluate_provenance, evaluate_sections
from midblock.report.sections.evidence_rows import exit_row, flow_row, steer_row, swap_row
from midblock.report.sections.flow import flow_data, flow_sections
from midblock.report.sections.merge import merge_sections
from midblock.report.sections.probe import probe_sections
from midblock.report.sections.recommend import recommend_sections
from midblock.report.sections.steer import steer_sections
from midblock.report.sections.study import study_sections
from midblock.report.sections.swap import swap_sections
from midblock.report.tune.page import tune_page
from midblock.report.tune.provenance import tune_provenance
from midblock.report.tune.results import tune_sections
from midblock.report.verb_page import Step, VerbPage
from midblock.runs.finished import Finished

STEPS = (
    Step("changed", "What changed", "No analysis and no gradient flow is among the runs."),
    Step(
        "matters", "Where it matters",
        "No early exit, swap or steering is among the runs: a change that is seen need not be a change that counts.",
    ),
    Step("do", "What to do", ""),
)  # fmt: skip


def one_block_at_a_time(run: Finished) -> bool:
    return run.summary.get("mode") == "each"


def never(run: Finished) -> bool:
    return False


PAGES: Mapping[str, VerbPage] = {
    "analyze": VerbPage(
        analysis_sections, "changed", FIGURES, told=0, traits=Traits(colour=0, describes=True),
        page=analysis_page, still="change_by_depth", opening=analysis_opening, facts=facts_of, shared=True,
        correlated=True, command="{base} {tuned} --data {data}",
    ),
    "flow": VerbPage(
        flow_sections, "changed", {"flow": gradient_flow}, told=1, traits=Traits(colour=6), data=flow_data,
        evidence=flow_row,
    ),
    "probe": VerbPage(
        probe_sections, "matters", {"early_exit": early_exit}, told=1, traits=Traits(colour=1), shared=True,
        command="{base} {tuned} --data {data}", evidence=exit_row,
    ),
    "swap": VerbPage(  # told before a probe: it changes the model, which a probe only reads
        swap_sections, "matters", {"swap": swapped}, told=0, traits=Traits(colour=2, compared=one_block_at_a_time),
        paper="each", command="{base} {tuned} --data {data}", evidence=swap_row,
    ),
    "steer": VerbPage(
        steer_sections, "matters", {"steering": steering}, told=2, traits=Traits(colour=3), shared=True,
        command="{base} --from {tuned} --data {data}", evidence=steer_row,
    ),
    "carve": VerbPage(
        carve_sections, "matters", {"necessity": necessity}, told=3, traits=Traits(colour=10), paper="each",
    ),
    "evaluate": VerbPage(
        evaluate_sections, "do", {"scores": scores, "forgetting": forgetting}, told=2,
        traits=Traits(colour=7, compared=never), read=read_evaluation, paper="each", provenance=evaluate_provenance,
        command="{base} {tuned} --tasks gsm_symbolic",
    ),
    "tune": VerbPage(  # its figures for papers stay in its own folder
        tune_sections, "do", TUNE_FIGURES, told=0, traits=Traits(colour=4), read=read_tune, page=tune_page,
        still="loss", provenance=tune_provenance, paper="none",
    ),
    "recommend": VerbPage(  # what it shows was measured by others
        recommend_sections, "do", {"curves": asked_curves, "front": repair_front}, told=5,
        traits=Traits(colour=9, compared=never), paper="each",
    ),
    "merge": VerbPage(  # its alphas were chosen, not measured
        merge_sections, "do", {"merge": merge_alphas}, told=1, traits=Traits(colour=5, compared=never),
    ),
    "erase": VerbPage(  # models with and without a soft prompt are compared, not depths
        erase_sections, "do", {"rates": erased_rates, "loss": erased_loss}, told=7,
        traits=Traits(colour=11, compared=never), read=read_erased, paper="each", provenance=erase_provenance,
    ),
    "study": VerbPage(  # whole models are compared, not depths
        study_sections, "do", {"efficiency": study_efficiency, "forgetting": study_forgetting}, told=4,
        traits=Traits(colour=8, compared=never), read=read_study, paper="each",
    ),
}  # fmt: skip
