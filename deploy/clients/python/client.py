#!/usr/bin/env python3
"""Tells users that their orders are ready: an example of calling formid from Python, made to be copied.

Reads lines "ORDER OPENID FORM_ID" from its standard input. For each it collects the form id, sends the message, and
prints how that ended. The exit code is 0 when every message was delivered.

    python3 -m venv venv && venv/bin/pip install --require-hashes -r requirements.txt
    echo "42 alice 0123456789abcdef0123456789abcdef" | venv/bin/python client.py --app wx0123456789abcdef

Over TLS with --ca; then the token in the environment variable FORMID_TOKEN, if there is one, goes with each call.
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

# Where the folder `proto` of formid is. The stubs are made from it at start, so that there is one contract, and no
# generated code beside it that may be older. It takes grpcio-tools; in an image that should be small, generate them when
# it is built (python -m grpc_tools.protoc) and import them as usual.
PROTO = Path(__file__).resolve().parents[3] / "proto"
sys.path.insert(0, str(PROTO))
collector_pb2, collector_grpc = grpc.protos_and_services("formid/v1/collector.proto")
dispatcher_pb2, dispatcher_grpc = grpc.protos_and_services("formid/v1/dispatcher.proto")

# The deadlines, in seconds: see proto/README.md for how long either can take. The service config has them too, but gRPC's
# core keeps that to itself, so the services are not told, and is up to a second short.
COLLECT = 15
SEND = 40

# One thing at a time on standard output and standard error.
printing = threading.Lock()


def open_channel(target, ca):
    """A channel to all replicas of a service, in turns.

    `target` is a name with an address for each replica, "dns:///dispatcher.example:7002", or those addresses themselves,
    "ipv4:10.0.0.1:7002,10.0.0.2:7002".
    """
    options = [
        # Balancing, and which calls are repeated on UNAVAILABLE: see proto/README.md.
        ("grpc.service_config", (PROTO / "service-config.json").read_text()),
        # A list of addresses is no name that a server could be asked for by.
        ("grpc.default_authority", target.removeprefix("dns:///").removeprefix("ipv4:").split(",")[0]),
        # Replicas that are new are looked for after this long, when one of those known goes; unless said, after 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # One that was lost is tried again soon; unless said, after 1 s and, when it is gone for longer, every 2 minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A replica that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]
    if ca is None:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    if token := os.environ.get("FORMID_TOKEN"):
        # Adds "authorization: Bearer ..."; the library sends it over TLS only.
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.secure_channel(target, credentials, options)


class Problem(Exception):
    """A call that failed: a reason for programs, a sentence for people, and what else the service told."""

    # Of formid's own answers, those that repeating may change. FAILED_PRECONDITION and the like say the same again.
    PASSING = {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    # What a connection that breaks looks like, in one library or another. RESOURCE_EXHAUSTED is what they make of HTTP/2's
    # ENHANCE_YOUR_CALM.
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
        """Whether the same call may fare better later.

        Without a reason, it was not formid that answered but this library or a proxy, and nobody knows how far the call
        came. Every call here is safe to repeat, by its form id or by its request id, so that does not matter.
        """
        return self.code in (self.BROKEN if self.reason is None else self.PASSING)

    def __str__(self):
        facts = "".join(f", {key} {value}" for key, value in sorted(self.facts.items()))
        # Of one field the sentence itself tells.
        several = self.fields if len(self.fields) > 1 else {}
        fields = "".join(f"; {field} {problem}" for field, problem in several.items())
        return f"{self.reason or self.code.name}{facts}: {self.args[0]}{fields}"


def patiently(call, request, deadline, patience, tell):
    """Makes a call that is safe to repeat, again and again for as long as `patience`, in seconds.

    What the channel repeats by itself comes on top. It heeds codes and not what the service says about them, so it
    cannot wait as RetryInfo asks, and does not repeat what must wait long: ABORTED, say, while the dispatcher that died
    with a message is given time to come back.
    """
    end, backoff = time.monotonic() + patience, 0.1
    while True:
        try:
            return call(request, timeout=deadline)
        except grpc.RpcError as error:
            problem = Problem(error)
        # Not all at the same moment.
        wait = (problem.retry_after or backoff) * random.uniform(1, 1.25)
        backoff = min(2 * backoff, 5)
        if not problem.passes() or time.monotonic() + wait > end:
            raise problem
        tell(f"{problem}; again in {wait:.1f} s")
        time.sleep(wait)


def ready_message(args, order, openid):
    """The message for an order, the same at each try.

    The request id is made of the event that the message is about. So it is the same for a try after a crash, and for a
    colleague that handles the event a second time. A random one would be another message each time.
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
    """One line of input, from the form id to the message; answers whether it was delivered."""
    order, openid, form_id = line.split(maxsplit=2)

    def tell(text):
        with printing:
            print(f"{order}: {text}", file=sys.stderr, flush=True)

    patience = 0 if args.policy_only else args.patience
    try:
        # One at a time because it is an example: a call takes up to 1000.
        credential = {"openid": openid, "form_id": form_id}
        request = collector_pb2.CollectRequest(app_id=args.app, credentials=[credential])
        for result in patiently(collector.Collect, request, COLLECT, patience, tell).results:
            # Of another form id the user may have one all the same.
            if result.status == collector_pb2.COLLECT_STATUS_REFUSED:
                tell(f"the form id is refused: {result.message}")
        message = ready_message(args, order, openid)
        answer = patiently(dispatcher.SendTemplate, message, SEND, patience, tell)
        # OUTCOME_UNKNOWN: it went out once or not at all, and nobody can tell. To send again may be to send twice.
        delivered = answer.outcome == dispatcher_pb2.OUTCOME_DELIVERED
        ending = "delivered" if delivered else "unknown"
    except Problem as problem:
        delivered, ending = False, f"failed: {problem}"
    with printing:
        print(f"{order}: {ending}", flush=True)
    return delivered


def main():
    parser = argparse.ArgumentParser(description="Tells users that their orders are ready.")
    parser.add_argument("--collector", default="ipv4:127.0.0.1:7001", help="where the collectors are")
    parser.add_argument("--dispatcher", default="ipv4:127.0.0.1:7002", help="where the dispatchers are")
    parser.add_argument("--app", required=True, help="the mini program's app id")
    parser.add_argument("--template", default="order-ready", help="the template's id")
    parser.add_argument("--at-once", type=int, default=16, help="how many lines are dealt with at once")
    parser.add_argument("--patience", type=float, default=60, help="seconds for which a call is repeated")
    parser.add_argument("--policy-only", action="store_true", help="repeat only what the channel repeats by itself")
    parser.add_argument("--ca", help="a file with the authority of the services' certificates; without it, no TLS")
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
