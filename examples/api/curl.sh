#!/bin/sh
# The API from a shell: curl.sh SOCKET. Runs a script once, registers a script and runs it twice,
# reads the tenant's usage, and shows how an error is answered.
set -eu

socket=$1
tenant=http://d/v1/tenants/example-curl # any host name: the socket is the address

# On an HTTP error, curl prints the answer and exits with 22.
ask() {
  curl --silent --show-error --fail-with-body --write-out '\n' --unix-socket "$socket" "$@"
}

# One run in a fresh isolate. The outcome is in the answer; HTTP 200 means that the request was
# valid.
ask "$tenant/load" --data '{ "code": "(n, env) => n * env.factor", "args": [21], "env": { "factor": 2 } }'

# The isolate of a registered script is kept between its runs, with the state of its module.
ask -X PUT "$tenant/scripts/counter" --data '{
  "code": "let calls = 0; export default { run(name) { return `${name}: ${++calls}` } }" }'
ask "$tenant/scripts/counter/run" --data '{ "args": ["first"] }'
ask "$tenant/scripts/counter/run" --data '{ "args": ["second"] }'

# What the tenant has used so far.
ask "$tenant"

# The answer to a wrong request is a problem (RFC 9457): its `type` is for programs, its `detail`
# for people.
status=0
ask "$tenant/load" --data '{ "cod": "() => 1" }' || status=$?
[ "$status" -eq 22 ]
