"""The errors a caller may meet. Each carries one sentence that says what was found, what was expected and what to do."""

from __future__ import annotations


class MetascatterError(Exception):
    """Base of every error metascatter raises on purpose; its text is one sentence for a person."""


class TargetError(MetascatterError):
    """A target cannot be read, or asks for what no lossless cell can do."""


class GeometryError(MetascatterError):
    """A ``Geometry`` is incomplete, contradictory, or does not match the one it has to match."""


class DataError(MetascatterError):
    """A data set or designs file is missing, damaged, or of the wrong form."""


class BundleError(MetascatterError):
    """A bundle is missing, incomplete, altered, or of an unknown version."""


class BackendError(MetascatterError):
    """An engine is not installed, cannot run on the device asked for, or refused the model."""


class Cancelled(MetascatterError):
    """The caller asked for the work to stop."""
