#!/usr/bin/env python3
"""Tells users that their orders are ready. An example of calling formid from Python, to be copied.

Reads lines "ORDER OPENID FORM_ID" from standard input. For each line it collects the form id, sends the message, and
prints the result. The exit code is 0 if every message was delivered.

    python3 -m venv venv && venv/bin/pip install --require-hashes -r requirements.txt
    echo "42 alice 0123456789abcdef0123456789abcdef" | venv/bin/python client.py --app wx0123456789abcdef

With --ca it uses TLS, and sends the token in the environment variable FORMID_TOKEN, if set, with each call.
"""

import argparse
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# Path of formid's folder `proto`. The stubs are generated from it at start, so that the protos are the only contract
# and no generated code can be out of date. This requires grpcio-tools. In a small image, generate the stubs when the
# image is built (python -m grpc_tools.protoc) and import them as usual.
PROTO = Path(__file__).resolve().parents[3] / "proto"
sys.path.insert(0, str(PROTO))
collector_pb2, collector_grpc = grpc.protos_and_services("formid/v1/collector.proto")
dispatcher_pb2, dispatcher_grpc = grpc.protos_and_services("formid/v1/dispatcher.proto")

# Deadlines in seconds. proto/README.md says how long a call can take. The service config has them too, but gRPC's core
# does not send those to the service, and enforces them up to a second early.
COLLECT = 15
SEND = 40

# Serializes output to standard output and standard error.
printing = threading.Lock()


def open_channel(target, ca):
    """Opens a channel to all replicas of a service, which calls them round-robin.

    `target` is a name that resolves to the addresses of the replicas, "dns:///dispatcher.example:7002", or a list of
    addresses, "ipv4:10.0.0.1:7002,10.0.0.2:7002".
    """
    options = [
        # Load balancing, and which calls are retried on UNAVAILABLE: see proto/README.md.
        ("grpc.service_config", (PROTO / "service-config.json").read_text()),
        # A list of addresses is not a valid authority, so set one.
        ("grpc.default_authority", target.removeprefix("dns:///").removeprefix("ipv4:").split(",")[0]),
        # Minimum time between name resolutions, which happen when a known replica disconnects. The default is 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # Reconnect soon to a lost replica. The default begins at 1 s and grows to 2 minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Detect a replica that disappeared without closing its connections.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]
    if ca is None:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    if token := os.environ.get("FORMID_TOKEN"):
        # Adds "authorization: Bearer ...". The library sends it over TLS only.
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.secure_channel(target, credentials, options)


class Problem(Exception):
    """A failed call: a reason for programs, a message for people, and the other details of the status."""

    # Codes of formid's own answers for which a retry may succeed. FAILED_PRECONDITION and the like would be answered
    # again.
    PASSING = {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    # Codes of a broken connection in the various gRPC libraries. They report HTTP/2's ENHANCE_YOUR_CALM as
    # RESOURCE_EXHAUSTED.
    BROKEN = {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
    }

    def __init__(self, error):
        super().__init__(error.details())
        self.code = error.code()
        self.reason = None
        self.facts = {}
        self.fields = {}
        self.retry_after = None
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(info) and info.domain == "formid":
                self.reason, self.facts = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(bad):
                self.fields = {field.field: field.description for field in bad.field_violations}

    def passes(self):
        """Whether a retry of the same call may succeed.

        Without a reason, this library or a proxy answered instead of formid, and it is not known whether the service
        has processed the call. That does not matter: every call here is safe to repeat, because of its form id or its
        request id.
        """
        return self.code in (self.BROKEN if self.reason is None else self.PASSING)

    def __str__(self):
        facts = "".join(f", {key} {value}" for key, value in sorted(self.facts.items()))
        # The message names a single field itself.
        several = self.fields if len(self.fields) > 1 else {}
        fields = "".join(f"; {field} {problem}" for field, problem in several.items())
        return f"{self.reason or self.code.name}{facts}: {self.args[0]}{fields}"


def patiently(call, request, deadline, patience, tell):
    """Makes a call that is safe to repeat, and retries it for up to `patience` seconds.

    The channel's own retries by the service config come in addition. They depend on the code only and not on the
    details, so they leave out calls that need a long wait. An example is ABORTED while the lease of a dispatcher that
    died with the message in flight has not expired.
    """
    end, backoff = time.monotonic() + patience, 0.1
    while True:
        try:
            return call(request, timeout=deadline)
        except grpc.RpcError as error:
            problem = Problem(error)
        # Jitter: callers should not all retry at the same moment.
        wait = (problem.retry_after or backoff) * random.uniform(1, 1.25)
        backoff = min(2 * backoff, 5)
        if not problem.passes() or time.monotonic() + wait > end:
            raise problem
        tell(f"{problem}; retrying in {wait:.1f} s")
        time.sleep(wait)


def ready_message(args, order, openid):
    """Builds the message about an order, the same at each attempt.

    The request id is derived from the event that the message is about. So a retry after a crash has the same id, and so
    does another worker that handles the event a second time. A random id would make each of them a new message.
    """
    return dispatcher_pb2.SendTemplateRequest(
        app_id=args.app,
        openid=openid,
        request_id=f"order-ready:{order}",
        template_id=args.template,
        data={"keyword1": {"value": f"Order {order}"}, "keyword2": {"value": "ready"}},
        page=f"pages/order?id={order}",
    )


def handle(args, collector, dispatcher, line):
    """Processes one line of input. Returns whether the message was delivered."""
    order, openid, form_id = line.split(maxsplit=2)

    def tell(text):
        with printing:
            print(f"{order}: {text}", file=sys.stderr, flush=True)

    patience = 0 if args.policy_only else args.patience
    try:
        # One credential in each call, because this is an example: a call takes up to 1000.
        credential = {"openid": openid, "form_id": form_id}
        request = collector_pb2.CollectRequest(app_id=args.app, credentials=[credential])
        for result in patiently(collector.Collect, request, COLLECT, patience, tell).results:
            # Not an error: the user may have another form id.
            if result.status == collector_pb2.COLLECT_STATUS_REFUSED:
                tell(f"the form id was refused: {result.message}")
        message = ready_message(args, order, openid)
        answer = patiently(dispatcher.SendTemplate, message, SEND, patience, tell)
        # OUTCOME_UNKNOWN: the message was delivered once or not at all. Sending it again might deliver it twice.
        delivered = answer.outcome == dispatcher_pb2.OUTCOME_DELIVERED
        ending = "delivered" if delivered else "unknown"
    except Problem as problem:
        delivered, ending = False, f"failed: {problem}"
    with printing:
        print(f"{order}: {ending}", flush=True)
    return delivered


def main():
    parser = argparse.ArgumentParser(description="Tells users that their orders are ready.")
    parser.add_argument("--collector", default="ipv4:127.0.0.1:7001", help="gRPC target of the collectors")
    parser.add_argument("--dispatcher", default="ipv4:127.0.0.1:7002", help="gRPC target of the dispatchers")
    parser.add_argument("--app", required=True, help="the mini program's app id")
    parser.add_argument("--template", default="order-ready", help="the template's id")
    parser.add_argument("--at-once", type=int, default=16, help="number of lines processed concurrently")
    parser.add_argument("--patience", type=float, default=60, help="seconds for which a call is retried")
    parser.add_argument("--policy-only", action="store_true", help="retry only by the channel's service config")
    parser.add_argument("--ca", help="file with the CA certificate of the services; without it, no TLS")
    args = parser.parse_args()
    with (
        open_channel(args.collector, args.ca) as collectors,
        open_channel(args.dispatcher, args.ca) as dispatchers,
        ThreadPoolExecutor(args.at_once) as pool,
    ):
        collector = collector_grpc.CollectorServiceStub(collectors)
        dispatcher = dispatcher_grpc.DispatcherServiceStub(dispatchers)
        lines = [pool.submit(handle, args, collector, dispatcher, line.strip()) for line in sys.stdin]
        delivered = [line.result() for line in lines]
    return 0 if all(delivered) else 1


if __name__ == "__main__":
    sys.exit(main())
