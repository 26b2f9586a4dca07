"""``znatok serve`` as a process."""

import re
import signal
import subprocess
import threading

import pytest

import helpers


class Server:
    """A running ``znatok serve``."""

    def __init__(self, folder, *words, **changes):
        self.process = subprocess.Popen(
            helpers.command("znatok", "serve", "--port", 0, *words),
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=helpers.environment(**changes),
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("curl "):
                break
        else:
            pytest.fail("it did not start: " + "".join(self.said))
        self._rest = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._rest.start()
        self.url = re.search(r"http://[^/]+/v1", "".join(self.said))[0]

    def stop(self, number=signal.SIGTERM):
        """Send a signal; return the exit code and all that was said."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._rest.join()
        self.process.stderr.close()
        return code, "".join(self.said)
