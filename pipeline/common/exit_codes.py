"""Exit codes of the commands, besides Python's own: 0 is success and 130 an interrupt."""

EXIT_FAILED = 1
EXIT_USAGE = 2  # a wrong setting, or an input refused before any work
EXIT_REQUEUE = 75  # stopped on request, after saving: run the same command again to resume (EX_TEMPFAIL)
EXIT_OUTPUT_CLOSED = 141  # the reader of standard output has closed it, as a shell reports SIGPIPE
