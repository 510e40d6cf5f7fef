"""Control: no compression."""

from dataclasses import dataclass

from .compression_method import CompressionMethod


@dataclass(frozen=True, kw_only=True)
class NoCompression(CompressionMethod):
    """Every token is kept, whatever `retention_ratio` says: the upstream model. A control, without a source."""

    name = "none"
    signals = ()

    @property
    def compresses(self) -> bool:
        return False

    @property
    def entering_ratio(self) -> float:
        return 1.0
