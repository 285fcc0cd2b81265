"""A detector as an HTTP server: ``fcos-fast serve``. Needs the extra ``serve``."""
