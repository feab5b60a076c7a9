"""The shared nouns: errors, seeds, estimates, the LayerTable and the LayerPlan."""

from midblock.base.errors import MidblockError as MidblockError
from midblock.base.errors import nearest as nearest
from midblock.base.errors import unknown as unknown
from midblock.base.estimate import LEVEL as LEVEL
from midblock.base.estimate import Estimate as Estimate
from midblock.base.files import folder_atomically as folder_atomically
from midblock.base.files import replace_atomically as replace_atomically
from midblock.base.files import user_path as user_path
from midblock.base.files import write_json as write_json
from midblock.base.layer_plan import LayerPlan as LayerPlan
from midblock.base.layer_table import LayerRow as LayerRow
from midblock.base.layer_table import LayerTable as LayerTable
from midblock.base.options import divide as divide
from midblock.base.options import from_options as from_options
from midblock.base.progress import Progress as Progress
from midblock.base.progress import Silent as Silent
from midblock.base.progress import watched as watched
from midblock.base.seeds import derive as derive
from midblock.base.seeds import generator as generator
