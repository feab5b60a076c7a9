"""Grids of the rooms above; `demo` is the smallest one."""

from midblock.studies.demo import demo as demo
from midblock.studies.recommend.recommend import recommend as recommend
from midblock.studies.recommend.recommendation import Recommendation as Recommendation
