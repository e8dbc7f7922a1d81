"""Cases, builders and programs that several tests share; `tests` is on the path, so they import as `helpers.NAME`."""
