"""The compression methods: a file each, and a line each in the list below.

`compression_method.py` says what a method is, `registry.py` finds a method by its name. FlashVID is registered there.
"""

from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .frame_dropping import FrameDropping
from .holitom import HoliTom
from .no_compression import NoCompression
from .prunevid import PruneVID
from .random_tokens import RandomTokens
from .registry import register_method
from .uniform_tokens import UniformTokens
from .vidcom2 import VidCom2
from .visionzip import VisionZip

for _method in (
    # One line for each method.
    FastV,
    VisionZip,
    PruneVID,
    FastVID,
    HoliTom,
    VidCom2,
    EVS,
    UniformTokens,
    RandomTokens,
    FrameDropping,
    NoCompression,
):
    register_method(_method)
