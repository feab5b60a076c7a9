"""Generate, score, and compare models with paired statistics."""

from midblock.evaluation.answers import ANSWERS as ANSWERS
from midblock.evaluation.answers import choose_reader as choose_reader
from midblock.evaluation.divergence import mean_divergence as mean_divergence
from midblock.evaluation.divergence import mean_nll as mean_nll
from midblock.evaluation.exact_match import MatchResult as MatchResult
from midblock.evaluation.exact_match import PairedDifference as PairedDifference
from midblock.evaluation.exact_match import check_answerable as check_answerable
from midblock.evaluation.exact_match import compare as compare
from midblock.evaluation.exact_match import exact_interval as exact_interval
from midblock.evaluation.exact_match import exact_match as exact_match
from midblock.evaluation.exact_match import wilson as wilson
from midblock.evaluation.generate import generate_greedy as generate_greedy
from midblock.evaluation.own_logits import CHECKED as CHECKED
from midblock.evaluation.own_logits import check_head as check_head
from midblock.evaluation.own_logits import check_lens as check_lens
from midblock.evaluation.targets import Scores as Scores
from midblock.evaluation.targets import Targets as Targets
from midblock.evaluation.targets import check_finite as check_finite
from midblock.evaluation.targets import score as score
from midblock.evaluation.token_mean import TokenMean as TokenMean
from midblock.evaluation.token_mean import difference as difference
from midblock.evaluation.token_mean import differences as differences
from midblock.evaluation.token_mean import part_of_way as part_of_way
