"""From torch.ao.quantization and TinyNeuralNetwork to octavo.compat: sources, rewritten.

All of it is tested in tests/compat/migrate/test_places.py, tests/compat/migrate/test_rewrite.py and
tests/compat/migrate/test_sources.py.
"""

from octavo.compat.migrate.result import FileMigration, Migration, Note
from octavo.compat.migrate.sources import migrate

__all__ = ["FileMigration", "Migration", "Note", "migrate"]
