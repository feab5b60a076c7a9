"""From a string to a model's parts: config, tokenizer, weights tensor by tensor, and the decoder's anatomy."""

from midblock.checkpoints.adapter import Adapter as Adapter
from midblock.checkpoints.anatomy import Anatomy as Anatomy
from midblock.checkpoints.anatomy import device_of as device_of
from midblock.checkpoints.bypass import without_adapters as without_adapters
from midblock.checkpoints.checkpoint import Checkpoint as Checkpoint
from midblock.checkpoints.checkpoint import open_checkpoint as open_checkpoint
from midblock.checkpoints.effective import BUFFERS as BUFFERS
from midblock.checkpoints.effective import EffectiveTensors as EffectiveTensors
from midblock.checkpoints.low_rank import LowRankDelta as LowRankDelta
from midblock.checkpoints.models import load_model as load_model
from midblock.checkpoints.models import quiet_transformers as quiet_transformers
from midblock.checkpoints.pair import BASE as BASE
from midblock.checkpoints.pair import Pair as Pair
from midblock.checkpoints.pair import Variant as Variant
from midblock.checkpoints.pair import load_models as load_models
from midblock.checkpoints.pair import load_pair as load_pair
from midblock.checkpoints.projections import Projection as Projection
from midblock.checkpoints.projections import part_of as part_of
from midblock.checkpoints.reference import ModelReference as ModelReference
from midblock.checkpoints.roles import ATTENTION as ATTENTION
from midblock.checkpoints.roles import MLP as MLP
from midblock.checkpoints.settings import LoadSettings as LoadSettings
from midblock.checkpoints.source import Source as Source
from midblock.checkpoints.stored_names import Piece as Piece
from midblock.checkpoints.tensors import TensorReader as TensorReader
