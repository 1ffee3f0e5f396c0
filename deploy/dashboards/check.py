"""Checks the dashboard and the alerts against metrics.txt: python3 check.py OUTPUT

Expressions may use only metrics, labels and label values of metrics.txt. Every metric of metrics.txt must be used in a
panel or an alert, and must occur in the source of a service. Every selector of the dashboard must use the dashboard's
variables. The PrometheusRule of deploy/kubernetes must have the same alerts. The dashboard's expressions are also
written to the file OUTPUT as recording rules for `promtool check rules`, because this script cannot parse PromQL.
"""

import json
import pathlib
import re
import sys

import yaml

HERE = pathlib.Path(__file__).parent
PROMETHEUS_RULE = HERE.parent / "kubernetes/components/alerts/prometheusrule.yaml"
# Labels that Prometheus adds to every series.
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
# The variables of Grafana, and values with which promtool can parse the expressions.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$namespace": ".*", "$instance": ".*", "$app": ".*"}
# The matchers that every selector of a panel must have.
FOLLOWED = ('namespace=~"$namespace"', 'instance=~"$instance"')

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*\{([^}]*)\}")
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}


def read_metrics():
    """Reads metrics.txt: series name -> label -> the listed values (none: any value)."""
    metrics, names = {}, {}
    for number, line in enumerate((HERE / "metrics.txt").read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0] not in ("counter", "gauge", "histogram") or len(words) < 2 or words[1] in names:
            raise SystemExit(f"metrics.txt, line {number}: expected a type, a new name and labels")
        name, labels = words[1], {}
        for label in words[2:]:
            key, _, values = label.partition("=")
            labels[key] = set(values.split("|")) if values else set()
        names[name] = set()
        for suffix in ("_bucket", "_sum", "_count") if words[0] == "histogram" else ("",):
            metrics[name + suffix] = labels | ({"le": set()} if suffix == "_bucket" else {})
            names[name].add(name + suffix)
    return metrics, names


def wrong(expression, metrics, used):
    """Yields the errors of the names in an expression; adds its metrics to `used`."""
    allowed = set(TARGET_LABELS)
    plain = expression
    for name, inside in SELECTOR.findall(STRING.sub(lambda s: s[0].replace("{", "").replace("}", ""), plain)):
        labels = metrics.get(name)
        if labels is None:
            yield f"{name or 'a selector without a name'} is not in metrics.txt"
            continue
        for label, operator, value in MATCHER.findall(inside):
            if label not in labels and label not in TARGET_LABELS:
                yield f"{name} has no label {label}"
            elif known := labels.get(label):
                values = value.split("|") if "~" in operator else [value]
                if "$" not in value:
                    yield from (f"{name}: {label}={v!r} is not in metrics.txt" for v in values if v not in known)
    groupings = [labels for _, labels in GROUPING.findall(plain)]
    plain = GROUPING.sub(" ", re.sub(r"\{[^}]*\}", " ", STRING.sub('""', plain)))
    plain = re.sub(r"\[[^\]]*\]|\b\d[\w.]*", " ", plain)
    for match in NAME.finditer(plain):
        name = match[0]
        if plain[match.end():].lstrip().startswith("(") or name.lower() in WORDS:
            continue
        if name not in metrics:
            yield f"{name} is not in metrics.txt"
            continue
        used.add(name)
        allowed |= set(metrics[name])
    for label in NAME.findall(" ".join(groupings)):
        if label not in allowed:
            yield f"none of its metrics has the label {label}"


def unfiltered(expression, metrics):
    """Yields the metrics of an expression whose selectors do not use the variables of the dashboard."""
    for match in NAME.finditer(STRING.sub(lambda string: "_" * len(string[0]), expression)):
        if match[0] in metrics:
            selector = re.match(r"\{[^}]*\}", expression[match.end() :])
            wanted = FOLLOWED + (('app=~"$app"',) if "app" in metrics[match[0]] else ())
            if missing := [label for label in wanted if selector is None or label not in selector[0]]:
                yield f"{match[0]} must be selected by {', '.join(missing)}"


def missing_in_source(names):
    """The formid_ metrics that occur in no source file. Some libraries append _total by themselves."""
    crates = [HERE.parents[1] / crate / "src" for crate in ("shared/server", "collector", "dispatcher")]
    source = "".join(path.read_text() for crate in crates for path in crate.rglob("*.rs"))
    own = [name for name in names if name.startswith("formid_")]
    missing = [name for name in own if f'"{name.removesuffix("_total")}' not in source]
    if len(missing) < len(own):
        return missing
    print("skipped: the check of metrics.txt against the sources, since they contain none of its metrics")
    return []


def main(output):
    metrics, names = read_metrics()
    problems, used, shown, ids = [], set(), [], set()
    problems += [f"metrics.txt: {name} occurs in no source file" for name in missing_in_source(names)]

    alerts = yaml.safe_load((HERE / "alerts.yaml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    tests = "".join(path.read_text() for path in HERE.glob("*.test.yaml"))
    for rule in rules:
        where = f"alert {rule.get('alert')}"
        problems += [f"{where}: {problem}" for problem in wrong(rule["expr"], metrics, used)]
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            problems.append(f"{where}: the severity must be critical or warning")
        if not {"summary", "description"} <= set(rule.get("annotations", {})):
            problems.append(f"{where}: a summary and a description are required")
        if rule.get("labels", {}).get("severity") == "critical" and rule["alert"] not in tests:
            problems.append(f"{where}: a critical alert must have a test")

    if yaml.safe_load(PROMETHEUS_RULE.read_text())["spec"] != alerts:
        problems.append(f"{PROMETHEUS_RULE.name}: its spec differs from alerts.yaml: run make.sh in its folder")

    try:
        dashboard = json.loads((HERE / "formid.json").read_text())
    except json.JSONDecodeError as error:
        raise SystemExit(f"formid.json: {error}") from None
    variables = {f"${variable['name']}" for variable in dashboard["templating"]["list"]}
    for panel in dashboard["panels"]:
        where = f"panel {panel['title']!r}"
        if panel["id"] in ids:
            problems.append(f"{where}: duplicate id")
        ids.add(panel["id"])
        for target in panel.get("targets", []):
            expression = target["expr"]
            if target["datasource"]["uid"] != "${datasource}":
                problems.append(f"{where}: the data source must be ${{datasource}}")
            for variable in set(re.findall(r"\$\w+", expression)) - variables - set(VARIABLES):
                problems.append(f"{where}: unknown variable {variable}")
            problems += [f"{where}: {problem}" for problem in wrong(expression, metrics, used)]
            problems += [f"{where}: {problem}" for problem in unfiltered(expression, metrics)]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            shown.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": expression})

    for name, series in names.items():
        if not series & used:
            problems.append(f"metrics.txt: {name} is used in no panel and no alert")
    groups = {"groups": [{"name": "dashboard", "rules": shown}]}
    pathlib.Path(output).write_text(yaml.safe_dump(groups))
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{len(rules)} alerts and {len(shown)} expressions of the dashboard use {len(used)} known series")


if __name__ == "__main__":
    main(sys.argv[1])
