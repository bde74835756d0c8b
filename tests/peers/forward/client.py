"""fluent-logger for Python: client.py PORT sync|async COUNT. Sends events as the library does; it never asks for an answer."""

import sys

from fluent import asyncsender, sender

port, kind, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module = sender if kind == "sync" else asyncsender
logger = module.FluentSender("python", host="127.0.0.1", port=port, nanosecond_precision=kind == "async")
for number in range(count):
    if not logger.emit(kind, {"message": f"{kind} {number}"}):
        sys.exit(str(logger.last_error))
logger.close()
