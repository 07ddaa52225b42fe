"""From torch.ao.quantization and TinyNeuralNetwork to octavo.compat: sources, rewritten."""

from octavo.compat.migrate.result import FileMigration, Migration, Note
from octavo.compat.migrate.sources import migrate

__all__ = ["FileMigration", "Migration", "Note", "migrate"]
