"""The API from Python, without packages: python3 python.py SOCKET.

Runs a script once, registers a script and runs it twice, reads the tenant's usage, and shows how an
error is answered.
"""

import http.client
import json
import socket
import sys

TENANT = "/v1/tenants/example-python"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("d")  # any host name: the socket is the address
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


class Problem(Exception):
    """The answer to a wrong request (RFC 9457): `type` is for programs, `detail` for people."""

    def __init__(self, status, body):
        super().__init__(body["detail"])
        self.status, self.type = status, body["type"]


def ask(connection, method, path, body=None):
    """Sends a request. Returns the value in the answer, or raises a Problem."""
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status >= 400:
        raise Problem(response.status, answer)
    return answer


connection = UnixConnection(sys.argv[1])

# One run in a fresh isolate. The outcome is in the answer; HTTP 200 means that the request was
# valid.
request = {"code": "(n, env) => n * env.factor", "args": [21], "env": {"factor": 2}}
run = ask(connection, "POST", f"{TENANT}/load", request)
print(run["outcome"], run["result"])

# The isolate of a registered script is kept between its runs, with the state of its module.
code = "let calls = 0; export default { run(name) { return `${name}: ${++calls}` } }"
ask(connection, "PUT", f"{TENANT}/scripts/counter", {"code": code})
for name in ["first", "second"]:
    print(ask(connection, "POST", f"{TENANT}/scripts/counter/run", {"args": [name]})["result"])

# What the tenant has used so far.
print("runs", ask(connection, "GET", TENANT)["usage"]["runs"])

try:
    ask(connection, "POST", f"{TENANT}/load", {"cod": "() => 1"})
except Problem as problem:
    print(problem.status, problem.type, problem)
else:
    sys.exit("a request with an unknown field was accepted")
