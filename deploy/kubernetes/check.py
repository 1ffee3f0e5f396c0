"""Checks built manifests: python3 check.py FILE...

Each file is the output of kustomize for one folder. It is validated against the schemas of the oldest and the newest
supported Kubernetes. Then it is checked for errors that no schema finds: references must resolve, pods must not have
more privileges than they need, secrets must not be in plain text, and every setting must exist in the services.
"""

import pathlib
import re
import sys
import tomllib

import yaml
from kubernetes_validate import utils as kubernetes

VERSIONS = ("1.31", "1.37")
# Kinds of the Prometheus Operator, which the schemas of Kubernetes do not include.
WITHOUT_SCHEMA = {"PodMonitor", "PrometheusRule"}
# The label by which the Prometheus of the chart kube-prometheus-stack selects them.
SELECTED_BY = "release"
# A rule for all addresses must except these, or it would allow other pods, the cluster's API and the metadata service.
PRIVATE = {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}
PRIVATE_6 = {"fc00::/7", "fe80::/10"}
# Secrets that may be in variables: the services take the password of Redis only as a part of the URL, which may be put
# together from another variable.
SECRET_VARIABLES = {"FORMID_REDIS_URL", "REDIS_PASSWORD"}
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

ROOT = pathlib.Path(__file__).parents[2]


def settings_in_source():
    """The environment variables that the services read, found in the source of their flags."""
    crates = [ROOT / crate / "src" for crate in ("shared/server", "shared/store", "collector", "dispatcher")]
    sources = [path for crate in crates for path in crate.rglob("*.rs")]
    return {name for path in sources for name in re.findall(r'env = "(FORMID_\w+)"', path.read_text())}


class Build:
    """All objects of one file, and their errors."""

    def __init__(self, path, known_settings):
        self.name = pathlib.Path(path).stem
        self.objects = [each for each in yaml.safe_load_all(pathlib.Path(path).read_text()) if each]
        self.known_settings = known_settings
        self.problems = []

    def problem(self, thing, what):
        name = f"{thing['kind']}/{thing['metadata']['name']}" if isinstance(thing, dict) else thing
        self.problems.append(f"{self.name}: {name}: {what}")

    def of(self, *kinds):
        return [each for each in self.objects if each["kind"] in kinds]

    def find(self, kind, name):
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    def check(self):
        for each in self.objects:
            self.schema(each)
        if self.problems:
            # The following checks rely on valid schemas.
            return self.problems
        pods = [(each, each["spec"]["template"]) for each in self.of("Deployment", "StatefulSet")]
        jobs = [(each, each["spec"]["jobTemplate"]["spec"]["template"]) for each in self.of("CronJob")]
        for owner, template in pods + jobs:
            self.pod(owner, template["spec"])
        for owner, template in pods:
            rolling = owner["spec"].get("strategy", {}).get("rollingUpdate", {})
            if rolling.get("maxUnavailable") == 0 and not owner["spec"].get("minReadySeconds"):
                self.problem(owner, "without minReadySeconds, clients may not know the new pods of a rollout")
            if owner["spec"]["selector"]["matchLabels"].items() - template["metadata"]["labels"].items():
                self.problem(owner, "its selector does not match its own pods")
        for each in self.of("Service", "PodDisruptionBudget", "NetworkPolicy"):
            self.selector(each, [template for _, template in pods + jobs])
        for each in self.of("StatefulSet"):
            service = self.find("Service", each["spec"]["serviceName"])
            if service is None or service["spec"].get("clusterIP") != "None":
                self.problem(each, f"its serviceName {each['spec']['serviceName']} is not a headless Service")
        for each in self.of("HorizontalPodAutoscaler"):
            target = each["spec"]["scaleTargetRef"]
            owner = self.find(target["kind"], target["name"])
            if owner is None or "replicas" in owner["spec"]:
                self.problem(each, "its target is missing, or sets its own number of replicas")
                continue
            containers = {container["name"] for container in owner["spec"]["template"]["spec"]["containers"]}
            for metric in each["spec"]["metrics"]:
                if metric.get("containerResource", {}).get("container") not in containers:
                    self.problem(each, "its metric must be of a container of its target, not of the whole pod")
        for each in self.of("NetworkPolicy"):
            for rule in each["spec"].get("egress", []):
                self.egress(each, rule)
        for each in self.of(*WITHOUT_SCHEMA):
            if SELECTED_BY not in each["metadata"].get("labels", {}):
                self.problem(each, f"the label {SELECTED_BY} is missing, by which Prometheus usually selects it")
        for each in self.of("ConfigMap"):
            for key, text in each.get("data", {}).items():
                if key.endswith(".toml"):
                    self.toml(each, key, text)
        return self.problems

    def schema(self, each):
        if each["kind"] in WITHOUT_SCHEMA:
            print(f"{self.name}: {each['kind']}/{each['metadata']['name']}: skipped, no schema for this kind")
            return
        for version in VERSIONS:
            try:
                kubernetes.validate(each, version, strict=True)
            except kubernetes.ValidationError as error:
                place = ".".join(map(str, error.path))
                self.problem(each, f"Kubernetes {version}: {place}: {error.message[:300]}")
            except (kubernetes.SchemaNotFoundError, kubernetes.VersionNotSupportedError) as error:
                self.problem(each, error.message)

    def egress(self, each, rule):
        if not rule.get("to"):
            self.problem(each, "an egress rule allows every address, including private ones")
        for block in (to["ipBlock"] for to in rule.get("to", []) if "ipBlock" in to):
            private = {"0.0.0.0/0": PRIVATE, "::/0": PRIVATE_6}.get(block["cidr"], set())
            if missing := private - set(block.get("except", [])):
                self.problem(each, f"its egress to {block['cidr']} must except {', '.join(sorted(missing))}")

    def pod(self, owner, spec):
        around = spec.get("securityContext", {})
        if not around.get("runAsNonRoot") or not around.get("runAsUser"):
            self.problem(owner, "its pods must set runAsNonRoot and a numeric runAsUser")
        if around.get("seccompProfile") != {"type": "RuntimeDefault"}:
            self.problem(owner, "its pods must have the seccomp profile RuntimeDefault")
        if spec.get("automountServiceAccountToken") is not False:
            self.problem(owner, "its pods must not get a token for the cluster's API")
        account = spec.get("serviceAccountName")
        if account and self.find("ServiceAccount", account) is None:
            self.problem(owner, f"ServiceAccount {account} does not exist")
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"]: claim for claim in owner["spec"].get("volumeClaimTemplates", [])}
        for container in spec["containers"] + spec.get("initContainers", []):
            self.container(owner, spec, container, volumes)

    def container(self, owner, spec, container, volumes):
        def problem(what):
            self.problem(owner, f"container {container['name']}: {what}")

        image = container.get("image", "")
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            problem(f"the image {image!r} needs a fixed version tag or a digest")
        if container.get("securityContext") != RESTRICTED:
            problem(f"its security context must be {RESTRICTED}")
        if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            problem("its terminationMessagePolicy must be FallbackToLogsOnError, to show why it exited")
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            problem("it must have requests for CPU and memory, and a limit on memory")
        ports = {port["containerPort"] for port in container.get("ports", [])}
        names = {port["name"] for port in container.get("ports", [])}
        # A job ends by itself, and nothing connects to it.
        for kind in () if owner["kind"] == "CronJob" else ("readinessProbe", "livenessProbe"):
            probe = container.get(kind)
            if probe is None:
                problem(f"{kind} is missing")
            elif probe.get("grpc", {}).get("port", min(ports)) not in ports:
                problem(f"its {kind} uses a port that the container does not declare")
            elif probe.get("tcpSocket", probe.get("httpGet", {})).get("port", min(names)) not in names:
                problem(f"its {kind} uses a port that the container does not declare")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                problem(f"volume {mount['name']} does not exist")
            if "subPath" in mount:
                problem(f"{mount['mountPath']} is a subPath, which is not updated when its Secret changes")
        self.environment(spec, container, volumes, ports, problem)

    def environment(self, spec, container, volumes, ports, problem):
        settings = {}
        for volume in volumes.values():
            name = volume.get("configMap", {}).get("name")
            if name and self.find("ConfigMap", name) is None:
                problem(f"ConfigMap {name} does not exist")
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and self.find("PersistentVolumeClaim", claim) is None:
                problem(f"PersistentVolumeClaim {claim} does not exist")
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                problem("envFrom must not use a Secret")
            name = source.get("configMapRef", {}).get("name")
            held = self.find("ConfigMap", name)
            if held is None:
                problem(f"ConfigMap {name} does not exist")
            else:
                settings |= held["data"]
        secrets = set()
        for variable in container.get("env", []):
            name = variable["name"]
            # Kubernetes replaces $(NAME) only by variables that are above it in the list.
            value = re.sub(r"\$\((\w+)\)", lambda used: "" if used[1] in secrets else used[0], variable.get("value", ""))
            if "$(" in value:
                problem(f"{name} uses a variable that is not a secret above it in the list")
            from_secret = value != variable.get("value", "")
            if "secretKeyRef" in variable.get("valueFrom", {}):
                secrets.add(name)
            settings[name] = value
            if "valueFrom" in variable and name not in SECRET_VARIABLES:
                problem(f"{name} is a secret in a variable: mount it as a file")
            if name in SECRET_VARIABLES and name not in secrets and not from_secret:
                problem(f"{name} must come from a Secret")
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for name, value in settings.items():
            if name.startswith("FORMID_") and name not in self.known_settings:
                problem(f"setting {name} does not exist")
            # What remains of a URL without its secrets: redis-sentinel://user:@host/name?sentinel_password=
            if name in SECRET_VARIABLES and re.search(r"^[^:]*$|:[^/@:]+@|password=[^&]", value) and value:
                problem(f"{name} is a secret in plain text")
            if name.endswith("_LISTEN") and int(value.rpartition(":")[2]) not in ports:
                problem(f"{name} is {value}, but the container does not declare this port")
            if value.startswith("/") and not any(value.startswith(mount + "/") for mount in mounts):
                problem(f"{name} is {value}, but nothing is mounted there")
        if settings.get("FORMID_INSECURE") and self.name != "overlays-dev":
            problem("FORMID_INSECURE is only for development")
        if "FORMID_DRAIN_WAIT" in settings:
            wait = seconds(settings["FORMID_DRAIN_WAIT"]) + 3 * seconds(settings.get("FORMID_DRAIN_TIMEOUT", "30s"))
            # The export of the last traces, counted even without traces, because it is easily forgotten later.
            wait += 7
            if spec.get("terminationGracePeriodSeconds", 30) < wait + 10:
                problem(f"a stop may take {wait} s: terminationGracePeriodSeconds must be at least {wait + 10}")

    def selector(self, each, templates):
        wanted = each["spec"].get("podSelector" if each["kind"] == "NetworkPolicy" else "selector", {})
        wanted = wanted if each["kind"] == "Service" else wanted.get("matchLabels", {})
        fits = [each for each in templates if wanted.items() <= each["metadata"]["labels"].items()]
        if not fits:
            self.problem(each, f"no pod has the labels {wanted}")
        if each["kind"] == "Service":
            names = {port["name"] for pod in fits for c in pod["spec"]["containers"] for port in c.get("ports", [])}
            for port in each["spec"]["ports"]:
                if port["targetPort"] not in names:
                    self.problem(each, f"its pods have no port {port['targetPort']}")

    def toml(self, each, key, text):
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.problem(each, f"{key}: {error}")
            return
        for app, table in tables.get("apps", {}).items():
            for plain, file in [("secret", "secret_file"), ("proxy", "proxy_file")]:
                if plain in table:
                    self.problem(each, f"{key}: the {plain} of {app} is in plain text; use {file}")
            mounts = [
                mount["mountPath"]
                for owner in self.of("Deployment")
                for container in owner["spec"]["template"]["spec"]["containers"]
                for mount in container.get("volumeMounts", [])
            ]
            for name in ["secret_file", "token_file", "token_headers_file", "proxy_file"]:
                if name in table and not any(table[name].startswith(mount + "/") for mount in mounts):
                    self.problem(each, f"{key}: nothing is mounted at the {name} of {app}")
            sources = [name in table for name in ["secret", "secret_file", "token_url", "token_file"]]
            if sources.count(True) + (table.get("token") == "none") != 1:
                self.problem(each, f"{key}: {app} must have exactly one source of access tokens")


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def main(paths):
    known = settings_in_source()
    builds = [Build(path, known) for path in paths]
    problems = [problem for build in builds for problem in build.check()]
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{sum(len(build.objects) for build in builds)} objects of {len(builds)} builds are valid")


if __name__ == "__main__":
    main(sys.argv[1:])
