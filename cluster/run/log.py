"""Log file of a run."""

import logging
import sys
from pathlib import Path


class LogFile(logging.FileHandler):
    """Log file whose errors, such as a full disk, are said in one line and do not end the run."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._said = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say the first error of writing on stderr. Other errors are bugs, and keep their traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            print(f"longview: {self.baseFilename} is not written: {error.strerror}", file=sys.stderr)
