"""What every test needs of the process it runs in."""

from __future__ import annotations

import signal

# A shell that starts something in the background has it ignore Ctrl-C, and so do its children: tests that press it
# need it to be heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
