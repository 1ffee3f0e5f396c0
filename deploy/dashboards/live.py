"""Tests the dashboard and the alerts on a real Prometheus: python3 live.py FOLDER_OF_BINARIES

Starts Redis, the sandbox, a collector, a dispatcher and Prometheus on free ports of this machine, and applies a small
load that makes everything happen that the dashboard shows: credentials are collected and refused, messages are sent and
refused, an app is stopped, tokens are refused, calls are refused because of overload, Redis hangs, a process is
restarted. Then it checks in Prometheus:

- every expression of a panel must return data, never NaN (also not for the time before the first call), and no series
  that is zero all the time;
- every variable of the dashboard must have a value;
- the success ratio of an app must be zero if all its messages end as APP_STOPPED, TOKEN_REFUSED or TOKEN_UNAVAILABLE;
- every alert must be evaluated without an error, and its operands must return data. Comparisons with a number are
  removed for this check, because a healthy service does not alert.

Conditions are awaited: an expression fails if it still has no data after PATIENCE seconds.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
PROTOS = HERE.parents[1] / "proto"
# Maximum seconds until a condition holds, long enough for a busy machine.
PATIENCE = 120
# Values for the variables of Grafana. One interval spans ten scrapes.
VARIABLES = {"$__rate_interval": "10s", "$__range": "5m", "$namespace": "live", "$instance": ".+", "$app": ".+"}
# The panel that must show a zero for each app of FAILING, whose messages all end with an error.
SUCCESS = "panel 'Success ratio of messages by app'"
FAILING = {"stopped": "APP_STOPPED", "refused": "TOKEN_REFUSED", "failing": "TOKEN_UNAVAILABLE"}
# A comparison with a number.
COMPARISON = re.compile(r"(==|!=|>=|<=|>|<)\s*-?[\d.]+(e[+-]?\d+)?(\s*\*\s*[\d.]+(e[+-]?\d+)?)*")
OFFSET = re.compile(r"\boffset \d+[smhdw]")
APPS = {name: f"wx-{name}" for name in ("main", "crowd", "stopped", "refused", "failing")}
SECRET, TOKEN = "0123456789abcdef", "live"
COLLECTOR, DISPATCHER = "formid.v1.CollectorService", "formid.v1.DispatcherService"


class Failed(Exception):
    """A condition did not hold in time, or a call failed."""


def until(what, condition):
    """Waits until a condition holds; returns its result."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        if time.monotonic() > end:
            raise Failed(f"not fulfilled after {PATIENCE} seconds: {what}")
        time.sleep(0.1)
    return result


def free_port():
    """Returns a free port below the range that systems use for outgoing connections."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def ask(url, body=None, method=None):
    """Sends a GET request, or a POST request if there is a body; returns the parsed JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


class Process:
    """A program that runs until it is stopped; its output goes to a log file with its name."""

    def __init__(self, folder, name, *command, **environment):
        self.name, self.log = name, folder / f"{name}.log"
        self.command, self.environment = list(map(str, command)), os.environ | environment | {"NO_COLOR": "1"}
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def answers(self, url):
        """Whether the program answers at the URL; raises Failed if it has exited."""
        if self.process.poll() is not None:
            raise Failed(f"{self.name} has exited:\n{self.log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except OSError:
            return False


class Prometheus(Process):
    """A Prometheus that scrapes both services every second."""

    def __init__(self, folder, metrics):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": {"namespace": "live", "pod": job}}]}
            for job, target in metrics.items()
        ]
        # JSON is YAML.
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": [str(HERE / "alerts.yaml")], "scrape_configs": scrapes}
        (folder / "prometheus.yaml").write_text(json.dumps(config))
        arguments = {
            "config.file": folder / "prometheus.yaml",
            "storage.tsdb.path": folder / "tsdb",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        super().__init__(folder, "prometheus", "prometheus", *(f"--{name}={value}" for name, value in arguments.items()))
        until("Prometheus is ready", lambda: self.answers(f"{self.base}/-/ready"))

    def api(self, path, **parameters):
        try:
            return ask(f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]
        except urllib.error.HTTPError as error:
            raise Failed(f"{parameters.get('query', path)}: {error.read().decode()}") from None

    def value(self, expression):
        """The value of an expression with one series; None if it has no series."""
        result = self.api("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def series(self, expression, since):
        """All values of an expression since a time, as pairs of labels and values."""
        parameters = {"query": expression, "start": since, "end": time.time(), "step": 1}
        found = self.api("query_range", **parameters)["result"]
        return [(each["metric"], [float(value) for _, value in each["values"]]) for each in found]


class World:
    """All running programs, and calls to them."""

    def __init__(self, folder, binaries, stack):
        self.folder, self.redis_port, self.sandbox_port = folder, free_port(), free_port()
        self.sandbox_base = f"http://127.0.0.1:{self.sandbox_port}/sandbox"
        self.ports = {"collector": free_port(), "dispatcher": free_port()}
        self.metrics = {f"formid-{name}": f"127.0.0.1:{free_port()}" for name in self.ports}

        def run(kind, *arguments, **environment):
            process = kind(folder, *arguments, **environment)
            stack.callback(process.stop)
            return process

        self.certificate()
        redis = ["--bind", "127.0.0.1", "--port", self.redis_port, "--dir", folder, "--save", ""]
        self.redis = run(Process, "redis", "redis-server", *redis)
        apps = ",".join(f"{app}={SECRET}" for app in APPS.values())
        sandbox = ["--listen", f"127.0.0.1:{self.sandbox_port}"]
        self.sandbox = run(Process, "sandbox", binaries / "sandbox", *sandbox, SANDBOX_APPS=apps)
        until("the sandbox is ready", lambda: self.sandbox.answers(f"{self.sandbox_base}/settings"))
        # Set before the start of the dispatcher, because it fetches its tokens at once.
        self.fault("http_500_before", "failing", endpoint="token")
        (folder / "apps.toml").write_text(
            "".join(
                f'[apps.{app}]\nsecret = "{"wrong" if name == "refused" else SECRET}"\n'
                f'base_url = "http://127.0.0.1:{self.sandbox_port}"\n'
                for name, app in APPS.items()
            )
        )
        permissions = '["collect", "read", "erase", "send", "broadcast", "broadcast_all", "operate"]'
        (folder / "callers.toml").write_text(
            f'[callers.live]\ntoken_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]\n'
            f'apps = ["*"]\npermissions = {permissions}\n'
        )
        flags = {
            "collector": ["--apps", ",".join(APPS.values()), "--sweep-period", "1s"],
            "dispatcher": ["--apps-file", folder / "apps.toml", "--max-streams", "1"],
        }
        services = {}
        for name, port in self.ports.items():
            common = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", self.metrics[f"formid-{name}"]]
            common += ["--redis-url", f"redis://127.0.0.1:{self.redis_port}", "--buckets", "4"]
            common += ["--callers-file", folder / "callers.toml", "--drain-wait", "0s", "--drain-timeout", "5s"]
            common += ["--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem"]
            services[name] = run(Process, name, binaries / name, *common, *flags[name])
        for name, service in services.items():
            url = f"http://{self.metrics[f'formid-{name}']}/metrics"
            until(f"the {name} is up", lambda service=service, url=url: service.answers(url))
        self.collector = services["collector"]
        self.prometheus = run(Prometheus, self.metrics)

    def certificate(self):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            + ["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
            + ["-keyout", self.folder / "key.pem", "-out", self.folder / "cert.pem"],
            check=True,
            capture_output=True,
        )

    def grpcurl(self, service, method, message):
        """Starts a call. A client stream stays open until its standard input is closed."""
        port = self.ports["collector" if service == COLLECTOR else "dispatcher"]
        call = subprocess.Popen(
            [os.environ["FORMID_GRPCURL"], "-cacert", self.folder / "cert.pem", "-max-time", "60"]
            # Without reflection, which would count as one more stream.
            + ["-import-path", PROTOS, "-proto", "formid/v1/collector.proto", "-proto", "formid/v1/dispatcher.proto"]
            + ["-H", f"authorization: Bearer {TOKEN}", "-d", "@", f"127.0.0.1:{port}", f"{service}/{method}"],
            stdin=subprocess.PIPE,  # grpcurl reads it to its end for a call with one message
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        call.stdin.write(json.dumps(message))
        call.stdin.flush()
        if method != "CollectStream":
            call.stdin.close()
            call.stdin = None
        return call

    def call(self, service, method, message, expected=""):
        """Makes a call, which must succeed or, if a reason is given, fail with it."""
        output, errors = self.grpcurl(service, method, message).communicate()
        # Without reflection, grpcurl prints the details of an error in base64.
        details = b"".join(base64.b64decode(detail) for detail in re.findall(r'"@value":"([^"]*)"', errors))
        if expected.encode() not in details or bool(errors) != bool(expected):
            raise Failed(f"{method} of {message}: expected {expected or 'OK'}, got: {errors or output}")
        return json.loads(output) if output else {}

    def collect(self, app, credentials):
        return self.call(COLLECTOR, "Collect", {"app_id": APPS[app], "credentials": credentials})

    def submit(self, app, openids, kind="form"):
        """Lets users submit forms or pay in the sandbox, and collects the resulting credentials."""
        body = {"app_id": APPS[app], "submissions": [{"openid": openid, "kind": kind} for openid in openids]}
        ids = ask(f"{self.sandbox_base}/submissions", body)["ids"]
        credentials = [{"openid": openid, f"{kind}_id": each} for openid, each in zip(openids, ids)]
        self.collect(app, credentials)
        return credentials

    def message(self, app, openid, **more):
        message = {"app_id": APPS[app], "openid": openid, "template_id": "t", "data": {"keyword1": {"value": "x"}}}
        return message | more

    def send(self, app, openid, expected="", **more):
        return self.call(DISPATCHER, "SendTemplate", self.message(app, openid, **more), expected)

    def broadcast(self, app, openids, **more):
        recipients = [{"openid": openid} for openid in openids]
        message = {"app_id": APPS[app], "template_id": "t", "data": {"keyword1": {"value": "x"}}}
        message |= {"recipients": {"list": recipients}} | more
        return self.call(DISPATCHER, "Broadcast", message)["broadcast"]["broadcastId"]

    def fault(self, kind, app, **more):
        rule = {"kind": kind, "match": {"app_id": APPS[app]}} | more
        ask(f"{self.sandbox_base}/faults", [rule])

    def settings(self, **settings):
        ask(f"{self.sandbox_base}/settings", settings, "PUT")


def load(world):
    """Makes everything happen that the dashboard shows."""
    crowd = [f"user-{n}" for n in range(300)]
    form = {"openid": "alice", "form_id": "the formId is a mock one"}
    print("collecting, with duplicates and refusals", file=sys.stderr)
    credentials = world.submit("main", ["alice"] * 30)
    world.collect("main", credentials[:3] + [form])
    world.submit("main", ["payer"] * 2, kind="prepay")
    world.submit("crowd", crowd)
    for app in FAILING:
        world.submit(app, ["alice"] * 3)
    grant = {"openid": "carol", "template_id": "t"}
    ask(f"{world.sandbox_base}/grants", {"app_id": APPS["main"], "grants": [grant | {"count": 3}]})
    world.collect("main", [{"openid": "carol", "grant": {"template_id": "t", "count": 3, "grant_key": "1"}}])

    print("sending, with failures", file=sys.stderr)
    for _ in range(3):
        world.send("main", "alice")
    subscription = {"delivery": "DELIVERY_SUBSCRIPTION", "data": {"thing1": {"value": "x"}}}
    world.send("main", "carol", **subscription)
    world.send("main", "nobody", "NO_CREDENTIAL")
    world.fault("answer", "main", errcode=40037, times=1)
    world.send("main", "alice", "MESSAGE_REFUSED")
    world.fault("cut_after", "main", times=1)
    world.send("main", "payer")
    world.fault("answer", "stopped", errcode=48001)
    for app, reason in FAILING.items():
        world.send(app, "alice", reason)

    print("broadcasting: one pauses, one ends with failures, one keeps running", file=sys.stderr)
    world.broadcast("crowd", crowd[:3], limit=1)
    world.broadcast("crowd", crowd[3:6] + ["nobody"])
    long = world.broadcast("crowd", crowd[6:], messages_per_second=2)

    print("opening more streams than permitted, while WeChat is slow", file=sys.stderr)
    batch = {"sequence": 1, "app_id": APPS["main"], "credentials": credentials[:1]}
    watch = {"app_id": APPS["crowd"], "broadcast_id": long}
    streams = [world.grpcurl(COLLECTOR, "CollectStream", batch), world.grpcurl(DISPATCHER, "WatchBroadcast", watch)]
    until("both streams are seen", lambda: world.prometheus.value("min(formid_requests_in_flight)") == 1)
    world.call(DISPATCHER, "WatchBroadcast", watch, "OVERLOADED")
    world.settings(latency_ms=1500)
    leased = 'max(formid_ledger_messages{state="leased"}) > 0'
    until("leases are seen", lambda: world.prometheus.value(leased))
    world.settings(latency_ms=0)
    for stream in streams:
        stream.kill()
        stream.communicate()

    print("suspending Redis for a moment, and restarting the collector", file=sys.stderr)
    world.redis.process.send_signal(signal.SIGSTOP)
    until("the metrics show that Redis is down", lambda: world.prometheus.value("max(formid_redis_up)") == 0)
    world.send("main", "alice", "REDIS_UNAVAILABLE")
    world.redis.process.send_signal(signal.SIGCONT)
    until("Redis is back", lambda: world.prometheus.value("min(formid_redis_up)") == 1)
    world.collector.stop()
    world.collector.start()
    until("the restart is seen", lambda: world.prometheus.value("max(changes(process_start_time_seconds[1h])) > 0"))
    world.submit("main", ["alice"])


def keep_sending(world, done):
    """Makes a little traffic, because Prometheus must see each counter twice: a new counter has no increase."""
    while not done.wait(1):
        # Results of calls are ignored here; load() checks them.
        with contextlib.suppress(Failed):
            world.submit("main", ["alice"])
        for app, openid in [("main", "alice"), ("main", "nobody"), *((app, "alice") for app in FAILING)]:
            with contextlib.suppress(Failed):
                world.send(app, openid)


def panels():
    """Yields the expressions of the dashboard with replaced variables, each with the title of its panel."""
    dashboard = json.loads((HERE / "formid.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            yield f"panel {panel['title']!r}, {target['refId']}", past(expression)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            yield f"variable {variable['name']!r}", f'count by ({label}) ({metric.replace("$namespace", "live")})'


def past(expression):
    """Replaces all offsets by three seconds, because there are no data of yesterday."""
    return OFFSET.sub("offset 3s", expression)


def data_of(alert):
    """The expression of an alert without comparisons with numbers. Those after "unless" stay: they select series."""
    kept, unless, rest = past(alert).partition(" unless ")
    return COMPARISON.sub("", kept) + unless + rest


def missing(world, since):
    """Yields the current errors of the expressions."""
    for where, expression in panels():
        series = world.prometheus.series(expression, since)
        if not series or (where.startswith("variable") and not all(labels for labels, _ in series)):
            yield f"{where} has no data: {expression}"
        nan = [labels for labels, values in series if any(value != value for value in values)]
        zero = [labels for labels, values in series if not any(values)]
        if nan:
            yield f"{where} has NaN in {len(nan)} series, such as {nan[0]}: {expression}"
        if where.startswith(SUCCESS):
            failing = {APPS[app] for app in FAILING}
            for app in failing ^ {labels["app"] for labels in zero}:
                yield f"{where}: {app} must be zero if and only if it is one of {failing}: {expression}"
        elif zero:
            yield f"{where} has {len(zero)} series that are always zero, such as {zero[0]}: {expression}"
    rules = [rule for group in world.prometheus.api("rules")["groups"] for rule in group["rules"]]
    if not rules:
        yield "Prometheus has no rules"
    for rule in rules:
        if rule["health"] != "ok":
            yield f"alert {rule['name']} is {rule['health']}: {rule.get('lastError', 'not evaluated yet')}"
        if not world.prometheus.series(data_of(rule["query"]), since):
            yield f"alert {rule['name']} has no data: {data_of(rule['query'])}"


def check(world, since):
    """Waits until there are no errors, while calls continue."""
    done = threading.Event()
    sender = threading.Thread(target=keep_sending, args=(world, done), daemon=True)
    sender.start()
    end = time.monotonic() + PATIENCE
    while problems := list(missing(world, since)):
        if time.monotonic() > end:
            raise Failed("\n".join(problems))
        time.sleep(1)
    done.set()
    sender.join()


def main(binaries):
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formid-live.")))
        folder.chmod(0o700)
        world = World(folder, pathlib.Path(binaries), stack)
        since = until("both services are scraped", lambda: time.time() if world.prometheus.value("sum(up)") == 2 else 0)
        # First without any traffic.
        idle = "min(count_over_time(up[1m])) >= 5 and min(formid_redis_up) == 1 and count(formid_ledger_messages) > 0"
        until("both services are scraped five times", lambda: world.prometheus.value(idle))
        try:
            load(world)
            check(world, since)
        except Failed:
            for log in folder.glob("*.log"):
                print(f"the last lines of {log.name}:", *log.read_text().splitlines()[-5:], sep="\n", file=sys.stderr)
            raise
    count = len(list(panels()))
    print(f"{count} expressions of the dashboard and all alerts return data ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(sys.argv[1])
    except Failed as failure:
        raise SystemExit(f"error: {failure}") from None
