"""One streaming pass over batches: hooks, reductions and the rows they leave."""

from midblock.trace.calls import BlockCalls as BlockCalls
from midblock.trace.calls import Held as Held
from midblock.trace.calls import check_rerun as check_rerun
from midblock.trace.calls import check_stream as check_stream
from midblock.trace.calls import record_calls as record_calls
from midblock.trace.calls import same_states as same_states
from midblock.trace.held_states import HeldStates as HeldStates
from midblock.trace.held_states import check_blocks_alone as check_blocks_alone
from midblock.trace.held_states import hold_states as hold_states
from midblock.trace.pieces import Pieces as Pieces
from midblock.trace.residual import run_backbone as run_backbone
from midblock.trace.residual import through_backbone as through_backbone
from midblock.trace.residual import watch as watch
from midblock.trace.rows import Rows as Rows
from midblock.trace.rows import RowStatistic as RowStatistic
from midblock.trace.rows import RowStore as RowStore
from midblock.trace.stream import Reduced as Reduced
from midblock.trace.stream import Reduction as Reduction
from midblock.trace.stream import reduce_batch as reduce_batch
from midblock.trace.stream import reduce_states as reduce_states
