"""From a string to examples to token batches: the same token ids for every model."""

from midblock.data.batches import REGIONS as REGIONS
from midblock.data.batches import Batch as Batch
from midblock.data.batches import make_batches as make_batches
from midblock.data.behaviours import BEHAVIOURS as BEHAVIOURS
from midblock.data.behaviours import Behaviour as Behaviour
from midblock.data.encode import TokenizedPrompt as TokenizedPrompt
from midblock.data.encode import TokenizedSet as TokenizedSet
from midblock.data.encode import encode as encode
from midblock.data.encode import encode_renderable as encode_renderable
from midblock.data.examples import Example as Example
from midblock.data.examples import ExampleSet as ExampleSet
from midblock.data.examples import Message as Message
from midblock.data.hub import HUB_SETS as HUB_SETS
from midblock.data.layouts import LAYOUTS as LAYOUTS
from midblock.data.load import load_dataset as load_dataset
from midblock.data.load import local_places as local_places
from midblock.data.procedural import BUILTIN_SETS as BUILTIN_SETS
from midblock.data.tokenizers import tokenizer_difference as tokenizer_difference
