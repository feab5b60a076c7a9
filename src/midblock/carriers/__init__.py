"""LCDD masks over what fine-tuning changed, and the soft prompt that erases what they carry."""

from midblock.carriers.erase.erase import erase as erase
from midblock.carriers.erase.settings import EraseSettings as EraseSettings
